//! Writes `deploy/nats/users.conf`: `make schema`.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats/users.conf"), cli::permissions::users_file())
}
