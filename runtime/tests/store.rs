//! The object store against real servers, and against a server that fails.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use runtime::{
    config::StoreSettings,
    store::{Error, Store},
    testing::{ObjectServer, conformance, skip},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const NO_WEED: &str = "there is no weed: run python3 tools/stores.py";
const NO_AZURITE: &str = "there is no Azurite: install Node.js with npm, then run python3 tools/stores.py";

#[tokio::test]
async fn a_folder_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store").as_path()).unwrap();
    conformance(&store).await;
    assert!(store.leftovers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_s3_is_a_store() {
    let Some(server) = ObjectServer::s3().await else { return skip("a_bucket_of_s3_is_a_store", NO_WEED) };
    conformance(&Store::open(server.settings("")).unwrap()).await;
    let other = Store::open(server.settings("other/place")).unwrap();
    other.put_bytes("archives/a", "other").await.unwrap();
    conformance(&Store::open(server.settings("a/place")).unwrap()).await;
    assert_eq!(other.read("archives/a").await.unwrap(), "other", "a prefix is a store of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_azure_is_a_store() {
    let Some(server) = ObjectServer::azure().await else { return skip("a_container_of_azure_is_a_store", NO_AZURITE) };
    conformance(&Store::open(server.settings("")).unwrap()).await;
    conformance(&Store::open(server.settings("a/place")).unwrap()).await;
}

/// Why a store at these settings cannot be used.
async fn refused(settings: StoreSettings) -> String {
    match Store::open(settings).unwrap().check().await {
        Err(error @ Error::Start { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_bucket_or_its_login_is_told_apart() {
    let Some(server) = ObjectServer::s3().await else {
        return skip("what_is_wrong_with_a_bucket_or_its_login_is_told_apart", NO_WEED);
    };
    let keys = |id: &str, secret: &str| format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n");
    let wrong = refused(server.at("s3://no-such-bucket", &server.credentials())).await;
    assert_eq!(
        wrong,
        "the object store s3://no-such-bucket cannot be used: there is no such bucket; make it, or name another with --store"
    );
    let wrong = refused(server.at("s3://kaai/p", &keys("nobody", "hush"))).await;
    assert!(wrong.contains("does not know the access key"), "{wrong}");
    let wrong = refused(server.at("s3://kaai/p", &keys("kaai", "hush"))).await;
    assert!(wrong.contains("does not accept the secret key") && !wrong.contains("hush"), "{wrong}");
    let wrong = refused(server.at("s3://kaai/p", &keys("other", "other-secret"))).await;
    assert!(wrong.contains("access is denied"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_container_or_its_login_is_told_apart() {
    let Some(server) = ObjectServer::azure().await else {
        return skip("what_is_wrong_with_a_container_or_its_login_is_told_apart", NO_AZURITE);
    };
    let wrong = refused(server.at("az://no-such-container", &server.credentials())).await;
    assert!(wrong.contains("there is no such bucket"), "{wrong}");
    let other = "azure_storage_account_name=devstoreaccount1\nazure_storage_account_key=aHVzaA==\n";
    let wrong = refused(server.at("az://kaai", other)).await;
    assert!(wrong.contains("does not let these credentials in") && !wrong.contains("aHVzaA"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_own_authority_is_trusted_only_where_that_is_named() {
    let Some(server) = ObjectServer::azure_with_tls().await else {
        let test = "a_certificate_of_an_own_authority_is_trusted_only_where_that_is_named";
        return skip(test, "there is no openssl, or no Azurite: run python3 tools/stores.py");
    };
    let wrong = refused(server.settings("p")).await;
    assert!(wrong.contains("its certificate is not trusted") && wrong.contains("--store-ca"), "{wrong}");
    let store = Store::open(StoreSettings { ca: server.authority(), ..server.settings("p") }).unwrap();
    store.check().await.unwrap();
    store.put_bytes("archives/a", "over TLS").await.unwrap();
    assert_eq!(store.read("archives/a").await.unwrap(), "over TLS");
}

#[test]
fn a_key_of_google_is_read_when_the_store_is_opened_and_not_repeated() {
    let settings =
        settings("gs://bucket/prefix", r#"{"client_email": "me", "private_key": "hush", "private_key_id": "1"}"#);
    let Err(error) = Store::open(settings) else { panic!("hush is no key") };
    let error = error.to_string();
    assert!(error.starts_with("the object store gs://bucket/prefix cannot be used: "), "{error}");
    assert!(!error.contains("hush"), "{error}");
}

/// How a server fails.
#[derive(Clone, Copy)]
enum Fault {
    /// It hangs up without an answer.
    Cut,
    /// It answers with this status.
    Status(&'static str),
    /// It takes the request and is silent.
    Silent,
}

/// A server that fails for the first `times` requests and then has an empty bucket; counts requests.
async fn failing(fault: Fault, times: usize) -> (StoreSettings, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = s3();
    settings.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    settings.patience = Duration::from_millis(200);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = vec![0; 64 << 10];
                let _ = stream.read(&mut request).await;
                let answer =
                    |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                match fault {
                    _ if number >= times => stream.write_all(answer("404 Not Found").as_bytes()).await.unwrap_or(()),
                    Fault::Cut => {}
                    Fault::Status(status) => stream.write_all(answer(status).as_bytes()).await.unwrap_or(()),
                    Fault::Silent => std::future::pending().await,
                }
            });
        }
    });
    (settings, count)
}

/// The settings of a component that is given an address and a file of credentials.
fn settings(address: &str, credentials: &str) -> StoreSettings {
    use clap::Parser;
    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        store: runtime::config::StoreArgs,
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, credentials).unwrap();
    let args = ["program", "--store", address, "--store-credentials", file.to_str().unwrap()];
    Program::parse_from(args).store.settings().unwrap()
}

fn s3() -> StoreSettings {
    settings("s3://bucket", "aws_access_key_id=me\naws_secret_access_key=hush\n")
}

#[tokio::test]
async fn a_server_that_fails_for_a_moment_is_asked_again() {
    for fault in [Fault::Cut, Fault::Status("500 Internal Server Error"), Fault::Status("503 Slow Down"), Fault::Silent]
    {
        let (settings, count) = failing(fault, 2).await;
        let store = Store::open(settings).unwrap();
        assert_eq!(store.size("a").await.unwrap(), None);
        assert_eq!(count.load(Ordering::SeqCst), 3);
    }
}

#[tokio::test]
async fn a_server_that_goes_on_failing_is_told_after_a_few_times() {
    for (fault, word) in [
        (Fault::Cut, "not reachable"),
        (Fault::Status("500 Internal Server Error"), "500 Internal Server Error"),
        (Fault::Silent, "not reachable"),
    ] {
        let (settings, count) = failing(fault, usize::MAX).await;
        let store = Store::open(settings).unwrap();
        let error = store.read("archives/a").await.unwrap_err().to_string();
        assert!(error.starts_with("the object store failed at archives/a: ") && error.contains(word), "{error}");
        assert!(!error.contains("hush"), "{error}");
        assert_eq!(count.load(Ordering::SeqCst), 5, "once and four times again: {error}");
    }
}

#[tokio::test]
async fn a_part_that_cannot_be_sent_fails_the_upload() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::write(&file, vec![1; 9 << 20]).unwrap();
    let (settings, _) = failing(Fault::Status("500 Internal Server Error"), usize::MAX).await;
    let error = Store::open(settings).unwrap().put_file("archives/a", &file).await.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
}

#[tokio::test]
async fn nobody_at_the_address_is_told_in_words() {
    let mut settings = s3();
    settings.endpoint = Some(format!("http://127.0.0.1:{}", runtime::testing::free_port()).parse().unwrap());
    let wrong = refused(settings).await;
    assert!(wrong.contains("it is not reachable (") && wrong.contains("efused"), "{wrong}");
}

#[tokio::test]
async fn a_certificate_file_that_holds_none_is_refused() {
    let mut settings = s3();
    settings.ca = Some(b"no certificate".to_vec());
    let Err(error) = Store::open(settings) else { panic!() };
    assert!(error.to_string().contains("--store-ca"), "{error}");
    assert!(Store::open(Path::new("/dev/null/x")).is_err());
}
