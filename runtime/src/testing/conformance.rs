//! What every object store must do, whatever it is. Run on a store with nothing in it.

use std::{io::Write, path::Path};

use crate::store::{Error, Object, Store};

/// Longer than three parts, and no multiple of one.
const LARGE: usize = (25 << 20) + 17;

/// Runs all of it.
///
/// # Panics
///
/// At the first thing that is not as it must be.
pub async fn conformance(store: &Store) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    store.check().await.expect("a store that is there can be used");
    nothing_is_there_at_first(store, folder.path()).await;
    what_is_put_is_read_listed_replaced_and_deleted(store, folder.path()).await;
    keys_are_kept_as_they_are(store).await;
    a_folder_is_not_its_neighbour(store).await;
    what_is_empty_is_there(store, folder.path()).await;
    a_large_file_comes_back_as_it_was(store, folder.path()).await;
    of_writers_at_the_same_time_one_wins_whole(store, folder.path()).await;
    an_upload_that_is_given_up_leaves_what_was_there(store, folder.path()).await;
    assert!(keys(store, "").await.is_empty(), "each left nothing");
}

async fn nothing_is_there_at_first(store: &Store, folder: &Path) {
    assert_eq!(store.list("archives").await.expect("a list"), []);
    assert_eq!(store.size("archives/a").await.expect("an answer"), None);
    assert!(matches!(store.read("archives/a").await, Err(Error::NotFound { key }) if key == "archives/a"));
    assert!(matches!(store.fetch("archives/a", &folder.join("to")).await, Err(Error::NotFound { .. })));
    store.delete("archives/a").await.expect("deleting what is not there is fine");
}

async fn what_is_put_is_read_listed_replaced_and_deleted(store: &Store, folder: &Path) {
    let file = folder.join("file");
    std::fs::write(&file, "first").expect("a file can be written");
    store.put_file("archives/a.zip", &file).await.expect("a file");
    store.put_bytes("logs/builds/b.log", "text").await.expect("bytes");
    assert_eq!(store.read("archives/a.zip").await.expect("what was put"), "first");
    let found = store.list("archives").await.expect("a list");
    let [Object { key, size, written_ms }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((key.as_str(), *size), ("archives/a.zip", 5));
    assert!(crate::clock::now_ms().abs_diff(*written_ms) < 600_000, "{written_ms}");

    std::fs::write(&file, "the second").expect("a file can be written");
    store.put_file("archives/a.zip", &file).await.expect("a file in place of another");
    assert_eq!(store.size("archives/a.zip").await.expect("a size"), Some(10));
    assert_eq!(keys(store, "logs").await, ["logs/builds/b.log"]);
    for key in ["archives/a.zip", "logs/builds/b.log", "archives/a.zip"] {
        store.delete(key).await.expect("deleting is fine, again too");
    }
    assert_eq!(store.size("archives/a.zip").await.expect("an answer"), None);
}

async fn keys_are_kept_as_they_are(store: &Store) {
    let odd = ["odd/a b", "odd/a+b=c&d", "odd/%41", "odd/ü€", "odd/~(x)'!*,;:@$", "odd/deep/er/x.tar.gz", "odd/a#b"];
    for key in odd {
        store.put_bytes(key, key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    for key in odd {
        assert_eq!(store.read(key).await.expect("what was put"), key);
    }
    let mut sorted = odd.map(str::to_owned).to_vec();
    sorted.sort();
    assert_eq!(keys(store, "odd").await, sorted);
    clear(store, "odd").await;
    for key in ["odd/../x", "odd//x"] {
        assert!(store.put_bytes(key, "x").await.is_err(), "{key}");
    }
}

async fn a_folder_is_not_its_neighbour(store: &Store) {
    for key in ["a/1", "a/b/2", "ab/3"] {
        store.put_bytes(key, "x").await.expect("bytes");
    }
    assert_eq!(keys(store, "a").await, ["a/1", "a/b/2"]);
    clear(store, "").await;
}

async fn what_is_empty_is_there(store: &Store, folder: &Path) {
    let file = folder.join("empty");
    std::fs::write(&file, "").expect("a file can be written");
    store.put_file("archives/empty", &file).await.expect("an empty file");
    store.put_bytes("archives/none", "").await.expect("no bytes");
    assert_eq!(store.size("archives/empty").await.expect("a size"), Some(0));
    assert_eq!(store.fetch("archives/none", &folder.join("to")).await.expect("what was put"), 0);
    clear(store, "archives").await;
}

async fn a_large_file_comes_back_as_it_was(store: &Store, folder: &Path) {
    let (from, to) = (folder.join("large"), folder.join("came"));
    let content = large(7);
    std::fs::write(&from, &content).expect("a file can be written");
    store.put_file("archives/large", &from).await.expect("a large file");
    assert_eq!(store.size("archives/large").await.expect("a size"), Some(LARGE as u64));
    assert_eq!(store.fetch("archives/large", &to).await.expect("what was put"), LARGE as u64);
    assert!(std::fs::read(&to).expect("a file can be read") == content, "it came back as another");
    clear(store, "archives").await;
}

/// What is there in the end is the whole of one of them.
async fn of_writers_at_the_same_time_one_wins_whole(store: &Store, folder: &Path) {
    let contents = [large(1), large(2)];
    let files = [folder.join("one"), folder.join("other")];
    for (file, content) in files.iter().zip(&contents) {
        std::fs::write(file, content).expect("a file can be written");
    }
    let (one, other) = tokio::join!(store.put_file("archives/x", &files[0]), store.put_file("archives/x", &files[1]));
    // Azure gives up the parts of whoever comes second, and says so: trying again helps.
    one.or(other).expect("one of them at least is told that it has written");
    let to = folder.join("won");
    store.fetch("archives/x", &to).await.expect("what was put");
    let won = std::fs::read(&to).expect("a file can be read");
    assert!(contents.contains(&won), "what is there is neither the one nor the other");
    clear(store, "archives").await;
}

/// Given up while parts of it are there, as by a component that is stopped.
async fn an_upload_that_is_given_up_leaves_what_was_there(store: &Store, folder: &Path) {
    store.put_bytes("archives/kept", "kept").await.expect("bytes");
    let pipe = folder.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a pipe");
    let (tell, told) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || {
            let mut pipe = std::fs::File::options().write(true).open(pipe).expect("a pipe can be opened");
            pipe.write_all(&large(3)).expect("it is read");
            tell.send(()).expect("somebody waits for it");
            // The pipe stays open, so the file has no end.
            released.recv().expect("it is released");
        }
    });
    {
        let mut put = Box::pin(store.put_file("archives/kept", &pipe));
        tokio::select! {
            ended = &mut put => panic!("a file without an end was stored: {ended:?}"),
            told = told => told.expect("the writer lives"),
        }
    }
    release.send(()).expect("the writer lives");
    writer.join().expect("the writer ends");
    assert_eq!(store.read("archives/kept").await.expect("what was there"), "kept");
    assert_eq!(keys(store, "archives").await, ["archives/kept"]);
    let missing = store.put_file("archives/missing", &folder.join("missing")).await;
    assert!(matches!(missing, Err(Error::File { .. })), "{missing:?}");
    assert_eq!(store.size("archives/missing").await.expect("an answer"), None);
    clear(store, "archives").await;
}

async fn keys(store: &Store, folder: &str) -> Vec<String> {
    store.list(folder).await.expect("a list").into_iter().map(|object| object.key).collect()
}

async fn clear(store: &Store, folder: &str) {
    for key in keys(store, folder).await {
        store.delete(&key).await.expect("what is there can be deleted");
    }
}

fn large(seed: usize) -> Vec<u8> {
    (0..LARGE).map(|n| (n.wrapping_mul(seed) % 251) as u8).collect()
}
