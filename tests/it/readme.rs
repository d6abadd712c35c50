//! What the READMEs tell people to type: it is there, and it works. What a component's own line does is seen in `components`.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
};

use runtime::testing::{free_port, program, until};
use tests::{
    PATIENCE, Ran, binary,
    readme::{shell_blocks, started_alone},
    root,
};

#[test]
fn the_readme_says_how_each_component_is_started_alone() {
    for name in ["packager", "builder", "deployer", "router", "scaler"] {
        let words = started_alone(&format!("kaai-{name}"), "/x", "127.0.0.1:1");
        let help = Ran::new(Command::new(binary(&words[0])).arg("--help")).good().stdout;
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag.as_str()), "{name} has no {flag}");
        }
    }
}

/// Ends a process that was started.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_bus_of_the_readme_keeps_streams_and_listens_on_this_machine_alone() {
    let folder = tempfile::tempdir().unwrap();
    let words = started_alone("nats-server", &folder.path().display().to_string(), "");
    let port = free_port();
    let mut command = Command::new(program(&words[0]).unwrap());
    command.args(&words[1..]).args(["--port", &port.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
    let _server = Ended(command.spawn().unwrap());
    let address = format!("nats://127.0.0.1:{port}");
    let client = until("the bus listens", PATIENCE, async || async_nats::connect(&address).await.ok()).await;
    let context = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config { name: "X".to_owned(), ..Default::default() };
    context.create_stream(config).await.unwrap();
    assert!(folder.path().join("nats/jetstream").is_dir());
    let listens = listeners(port);
    assert!(listens == ["0100007F"], "{listens:?}");
}

/// The addresses, in the kernel's spelling, at which this machine listens on a port.
fn listeners(port: u16) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let rows =
        tables.iter().flat_map(|table| table.lines().skip(1)).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == "0A")
        .filter_map(|row| row[1].strip_suffix(&format!(":{port:04X}")).map(str::to_owned))
        .collect()
}

#[test]
fn every_file_that_a_command_of_a_readme_names_is_there() {
    let mut found = Vec::new();
    for readme in ["README.md", "deploy/README.md"] {
        for block in shell_blocks(readme) {
            let lines = block.lines().map(|line| line.split(" #").next().unwrap_or_default());
            let words =
                lines.flat_map(|line| line.split([' ', '"', '=', '{', '}']).map(|word| word.replace("'$PWD'/", "")));
            let ours = |word: &String| {
                word.contains('/') && !word.starts_with(['/', '-', '#']) && !word.contains("://") && !word.contains('$')
            };
            for path in words.filter(ours) {
                let path = path.trim_end_matches("*.conf").to_owned();
                assert!(root().join(&path).exists(), "{readme} names {path}, which is not there");
                found.push(path);
            }
        }
    }
    for known in ["examples/two-models/sample-request.json", "examples/ridge-diabetes", "deploy/nats/make-passwords.py"]
    {
        assert!(found.iter().any(|path| path == known), "{known} is not among {found:?}");
    }
    assert!(is_executable("deploy/nats/make-passwords.py"));
}

fn is_executable(path: &str) -> bool {
    root().join(path).metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}
