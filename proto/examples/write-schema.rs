//! Writes the generated documents into `proto/schema`: `make schema`.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    fs::create_dir_all(&folder)?;
    for (name, text) in proto::schema::documents() {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
