//! The layer of an environment: a tar that depends on its content alone, made from a virtual environment and moved to another place in it.
//!
//! It knows tars, and what in a virtual environment names its own path. It does not know registries.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use oci_distribution::manifest::{IMAGE_LAYER_GZIP_MEDIA_TYPE, OciDescriptor};
use proto::id::Digest;
use sha2::{Digest as _, Sha256};

use super::gzip::Gzip;
use crate::kept::Kept;

/// Where the environment lies in every image.
pub(crate) const HOME: &str = "/opt/kaai/environment";
/// The file in it that says what was installed, with hashes.
pub(crate) const LOCK: &str = "requirements.lock";

/// What uv puts into a virtual environment for a shell or for itself.
const LEFT_OUT: [&str; 4] = [".lock", ".gitignore", "CACHEDIR.TAG", "bin/pydoc.bat"];
/// A script is read whole; what is larger is a program.
const LARGEST_SCRIPT: u64 = 1 << 20;

/// A layer in a file.
pub(crate) struct Layer {
    pub(crate) file: tempfile::NamedTempFile,
    pub(crate) descriptor: OciDescriptor,
    /// The digest of the tar before it was compressed.
    pub(crate) diff_id: String,
}

/// Packs an environment as the layer of an image whose Python is at `interpreter`; without one, the environment has its own. Blocks.
///
/// Times, owners and the order of folders leave no trace; rights are those of a file anybody may read.
///
/// # Errors
///
/// Fails when something cannot be read, or the file not be written.
pub(crate) fn pack(environment: &Path, interpreter: Option<&str>, kept: &Kept, into: &Path) -> io::Result<Layer> {
    let file = tempfile::NamedTempFile::new_in(into)?;
    // One pass: the tar is hashed, compressed, and hashed again.
    let compressed = Gzip::new(Hashing::new(io::BufWriter::new(file.reopen()?)), kept);
    let mut tar = Tar { builder: tar::Builder::new(Hashing::new(compressed)) };
    for folder in ["opt", "opt/kaai", "opt/kaai/environment"] {
        tar.folder(folder)?;
    }
    for (name, entry) in entries(environment, interpreter)? {
        if matches!(entry, Entry::Folder) && is_of_package(&name) {
            tar.builder.get_mut().writer.cut()?;
        }
        let name = format!("{}/{name}", HOME.trim_start_matches('/'));
        match entry {
            Entry::Folder => tar.folder(&name)?,
            Entry::Link(target) => tar.link(&name, &target)?,
            Entry::Text(text, runs) => tar.file(&name, text.len() as u64, runs, text.as_slice())?,
            Entry::File(path, runs) => {
                let file = fs::File::open(&path)?;
                tar.file(&name, file.metadata()?.len(), runs, file)?;
            }
        }
    }
    let (compressed, diff_id, _) = tar.builder.into_inner()?.finish();
    let (mut writer, digest, size) = compressed.finish()?.finish();
    writer.flush()?;
    let descriptor = OciDescriptor {
        media_type: IMAGE_LAYER_GZIP_MEDIA_TYPE.to_owned(),
        digest,
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    Ok(Layer { file, descriptor, diff_id })
}

/// Whether a folder is that of a package or of its description, which other environments have as well.
fn is_of_package(folder: &str) -> bool {
    folder.rsplit_once('/').is_some_and(|(parent, _)| parent.ends_with("/site-packages"))
}

/// What stands under a name in the layer.
enum Entry {
    Folder,
    Link(String),
    /// A file whose content is ours, and whether it is a program.
    Text(Vec<u8>, bool),
    File(PathBuf, bool),
}

/// All of an environment by name, with what names its path put right.
fn entries(environment: &Path, interpreter: Option<&str>) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    walk(environment, "", &mut entries)?;
    if let Some(interpreter) = interpreter {
        let home = interpreter.rsplit_once('/').map_or("", |(folder, _)| folder);
        let text = format!("home = {home}\ninclude-system-site-packages = false\n");
        entries.insert("pyvenv.cfg".to_owned(), Entry::Text(text.into_bytes(), false));
        for (name, target) in [("bin/python", interpreter), ("bin/python3", "python")] {
            entries.insert(name.to_owned(), Entry::Link(target.to_owned()));
        }
    }
    let scripts = move_scripts(environment, &mut entries)?;
    put_records_right(&scripts, &mut entries)?;
    Ok(entries)
}

fn walk(root: &Path, name: &str, entries: &mut BTreeMap<String, Entry>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(name))? {
        let entry = entry?;
        let Ok(own) = entry.file_name().into_string() else {
            return Err(io::Error::other(format!("{} has a name that is no text", entry.path().display())));
        };
        let path = if name.is_empty() { own.clone() } else { format!("{name}/{own}") };
        let shell = path.starts_with("bin/activate") || path.starts_with("bin/deactivate");
        if LEFT_OUT.contains(&path.as_str()) || path.starts_with("kaai-") || shell {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            entries.insert(path.clone(), Entry::Folder);
            walk(root, &path, entries)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path())?.to_string_lossy().replace(&*root.to_string_lossy(), HOME);
            entries.insert(path, Entry::Link(target));
        } else {
            let runs = entry.metadata()?.permissions().mode() & 0o111 != 0;
            entries.insert(path, Entry::File(entry.path(), runs));
        }
    }
    Ok(())
}

/// Has scripts name the environment's path in the image; returns which were changed.
fn move_scripts(
    environment: &Path,
    entries: &mut BTreeMap<String, Entry>,
) -> io::Result<BTreeMap<String, (String, usize)>> {
    let (from, mut changed) = (environment.to_string_lossy().into_owned(), BTreeMap::new());
    for (name, entry) in entries.iter_mut().filter(|(name, _)| name.starts_with("bin/")) {
        let Entry::File(path, runs) = entry else { continue };
        if fs::metadata(&*path)?.len() > LARGEST_SCRIPT {
            continue;
        }
        let content = fs::read(&*path)?;
        let Some(text) = content.strip_prefix(b"#!").and_then(|_| std::str::from_utf8(&content).ok()) else { continue };
        if text.contains(&from) {
            let moved = text.replace(&from, HOME).into_bytes();
            changed.insert(name.clone(), (BASE64URL_NOPAD.encode(&Sha256::digest(&moved)), moved.len()));
            *entry = Entry::Text(moved, *runs);
        }
    }
    Ok(changed)
}

/// The list of each package's files has hash and size of its scripts, which are others now.
fn put_records_right(
    scripts: &BTreeMap<String, (String, usize)>,
    entries: &mut BTreeMap<String, Entry>,
) -> io::Result<()> {
    if scripts.is_empty() {
        return Ok(());
    }
    for (_, entry) in entries.iter_mut().filter(|(name, _)| name.ends_with(".dist-info/RECORD")) {
        let Entry::File(path, runs) = entry else { continue };
        let text = fs::read_to_string(&*path)?;
        let line = |line: &str| {
            let script = line.split(',').next().and_then(|path| path.strip_prefix("../../../"));
            match script.and_then(|name| Some((name, scripts.get(name)?))) {
                Some((name, (hash, size))) => format!("../../../{name},sha256={hash},{size}\n"),
                None => format!("{line}\n"),
            }
        };
        let right: String = text.lines().map(line).collect();
        if right != text {
            *entry = Entry::Text(right.into_bytes(), *runs);
        }
    }
    Ok(())
}

struct Tar<W: Write> {
    builder: tar::Builder<W>,
}

impl<W: Write> Tar<W> {
    fn folder(&mut self, name: &str) -> io::Result<()> {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        self.builder.append_data(&mut header, format!("{name}/"), io::empty())
    }

    fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.builder.append_link(&mut header, name, target)
    }

    fn file(&mut self, name: &str, size: u64, runs: bool, content: impl io::Read) -> io::Result<()> {
        let mut header = header(tar::EntryType::Regular, if runs { 0o755 } else { 0o644 }, size);
        let mut content = Counting { reader: content.take(size), read: 0 };
        self.builder.append_data(&mut header, name, &mut content)?;
        // What follows would be taken for a part of it.
        match content.read == size {
            true => Ok(()),
            false => Err(io::Error::other(format!("{name} has become shorter while it was packed"))),
        }
    }
}

/// Counts what is read through it.
struct Counting<R> {
    reader: R,
    read: u64,
}

impl<R: io::Read> io::Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Counts and hashes what is written through it.
struct Hashing<W> {
    writer: W,
    hasher: Sha256,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(writer: W) -> Self {
        Self { writer, hasher: Sha256::new(), length: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.writer, Digest::from_sha256(self.hasher.finalize().into()).to_string(), self.length)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    /// A small virtual environment whose files are made in some order and at some time.
    fn environment(folder: &Path, names: &[&str]) -> PathBuf {
        let root = folder.join("e");
        let site = root.join("lib/python3.11/site-packages/x-1.dist-info");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(&site).unwrap();
        let own = root.display();
        for name in names {
            match *name {
                "script" => {
                    let path = root.join("bin/x");
                    fs::write(&path, format!("#!{own}/bin/python\nprint(1)\n")).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
                }
                "activate" => fs::write(root.join("bin/activate.fish"), "x").unwrap(),
                "python" => std::os::unix::fs::symlink("/usr/lib/python3.11", root.join("bin/python")).unwrap(),
                "record" => {
                    fs::write(site.join("RECORD"), "../../../bin/x,sha256=old,99\nx.py,sha256=kept,3\n").unwrap();
                }
                other => fs::write(root.join("lib/python3.11/site-packages").join(other), other).unwrap(),
            }
        }
        root
    }

    fn packed(root: &Path, interpreter: Option<&str>, folder: &Path) -> Layer {
        pack(root, interpreter, &Kept::open(folder, folder).unwrap(), folder).unwrap()
    }

    fn unpacked(layer: &Layer) -> BTreeMap<String, (u32, String)> {
        let reader = flate2::read::MultiGzDecoder::new(layer.file.reopen().unwrap());
        let mut all = BTreeMap::new();
        for entry in tar::Archive::new(reader).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                text = target.display().to_string();
            }
            let name = entry.path().unwrap().display().to_string();
            all.insert(name, (entry.header().mode().unwrap(), text));
        }
        all
    }

    #[test]
    fn equal_environments_make_an_equal_layer_wherever_and_whenever_they_were_made() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (here, there) = (tempfile::tempdir_in(one.path()).unwrap(), two);
        let names = ["a.py", "b.py", "script", "record", "python", "activate"];
        let mut turned = names;
        turned.reverse();
        let first = packed(&environment(here.path(), &names), Some("/usr/bin/python3.11"), one.path());
        let second = packed(&environment(there.path(), &turned), Some("/usr/bin/python3.11"), there.path());
        assert_eq!((&first.descriptor.digest, &first.diff_id), (&second.descriptor.digest, &second.diff_id));
        let content = fs::read(first.file.path()).unwrap();
        assert_eq!(first.descriptor.size, i64::try_from(content.len()).unwrap());
        assert_eq!(first.descriptor.digest, super::super::registry::digest_of(&content));
    }

    #[test]
    fn a_file_is_packed_as_long_as_it_was_said_to_be() {
        let mut tar = Tar { builder: tar::Builder::new(Vec::new()) };
        tar.file("grown", 3, false, b"abcdef".as_slice()).unwrap();
        let error = tar.file("shrunk", 9, false, b"abc".as_slice()).unwrap_err();
        assert!(error.to_string().contains("shrunk has become shorter"), "{error}");
        let written = tar.builder.get_ref();
        assert_eq!(written.windows(3).filter(|bytes| bytes == b"def").count(), 0);
    }

    #[test]
    fn what_names_the_environments_path_names_the_one_in_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let root = environment(folder.path(), &["script", "record", "python", "activate", "a.py"]);
        let all = unpacked(&packed(&root, Some("/usr/bin/python3.11"), folder.path()));
        let at = |name: &str| &all[&format!("opt/kaai/environment/{name}")];
        let script = "#!/opt/kaai/environment/bin/python\nprint(1)\n";
        assert_eq!(at("bin/x"), &(0o755, script.to_owned()));
        assert_eq!(at("bin/python").1, "/usr/bin/python3.11");
        assert!(at("pyvenv.cfg").1.starts_with("home = /usr/bin\n"));
        let hash = BASE64URL_NOPAD.encode(&Sha256::digest(script));
        let record = format!("../../../bin/x,sha256={hash},{}\nx.py,sha256=kept,3\n", script.len());
        assert_eq!(at("lib/python3.11/site-packages/x-1.dist-info/RECORD").1, record);
        assert!(!all.keys().any(|name| name.contains("activate")), "{all:?}");
    }

    #[test]
    fn an_environment_with_a_python_of_its_own_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = environment(folder.path(), &["script", "python"]);
        let all = unpacked(&packed(&root, None, folder.path()));
        assert_eq!(all["opt/kaai/environment/bin/python"].1, "/usr/lib/python3.11", "as it was linked");
        assert!(!all.contains_key("opt/kaai/environment/pyvenv.cfg"), "it is no virtual environment: {all:?}");
        assert!(all["opt/kaai/environment/bin/x"].1.starts_with("#!/opt/kaai/environment/bin/python"));
    }
}
