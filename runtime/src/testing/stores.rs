//! Real servers of object stores for tests: SeaweedFS, which speaks as S3 does, and Azurite, which speaks as Azure's blobs do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use object_store::{
    aws::AmazonS3Builder,
    azure::{AzureAccessKey, AzureAuthorizer, AzureCredential},
    client::HttpRequest,
    signer::Signer,
};
use tempfile::TempDir;

use super::{free_port, program, until};
use crate::{
    config::{Credentials, StoreSettings},
    store::Cloud,
    tls,
};

/// How long a server may take to be up.
const UP: Duration = Duration::from_secs(60);
/// The account that Azurite has, and its well-known key.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A real server with a bucket `kaai`, ended when it is dropped.
pub struct ObjectServer {
    child: Child,
    folder: TempDir,
    cloud: Cloud,
    tls: bool,
    port: u16,
}

impl ObjectServer {
    /// Starts SeaweedFS with one user and waits until it has the bucket; `None` where there is no `weed`.
    ///
    /// # Panics
    ///
    /// When it is not up in time.
    pub async fn s3() -> Option<Self> {
        let program = program("weed")?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (identities, data) = (folder.path().join("s3.json"), folder.path().join("data"));
        let users = r#"{"identities": [
            {"name": "kaai", "credentials": [{"accessKey": "kaai", "secretKey": "kaai-secret"}], "actions": ["Admin", "Read", "Write", "List"]},
            {"name": "other", "credentials": [{"accessKey": "other", "secretKey": "other-secret"}], "actions": ["Read:elsewhere"]}
        ]}"#;
        fs::write(&identities, users).expect("a file can be written");
        fs::create_dir(&data).expect("a folder can be made");
        let port = free_port();
        let mut command = Command::new(program);
        command.arg("server").arg(format!("-dir={}", data.display())).args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        command.args(["-volume.max=20", "-master.volumeSizeLimitMB=64", "-filer", "-s3", "-s3.port.iceberg=0"]);
        command.arg(format!("-s3.config={}", identities.display())).arg(format!("-s3.port={port}"));
        for part in ["master", "volume", "filer"] {
            command.arg(format!("-{part}.port={}", free_port())).arg(format!("-{part}.port.grpc={}", free_port()));
        }
        command.arg(format!("-s3.port.grpc={}", free_port()));
        Some(Self::run(command, folder, Cloud::S3, false, port).await)
    }

    /// Starts Azurite and waits until it has the container; `None` where there is none, or no Node.js to run it.
    ///
    /// # Panics
    ///
    /// When it is not up in time.
    pub async fn azure() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::azurite(folder, None).await
    }

    /// The same behind TLS, with a certificate that only [`ObjectServer::authority`] vouches for; `None` without `openssl`, too.
    ///
    /// # Panics
    ///
    /// When it is not up in time.
    pub async fn azure_with_tls() -> Option<Self> {
        let openssl = program("openssl")?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let [certificate, key] = ["tls.pem", "tls.key"].map(|name| folder.path().join(name));
        let mut command = Command::new(openssl);
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        command.args(["-subj", "/CN=kaai test", "-addext", "subjectAltName=IP:127.0.0.1"]);
        command
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key);
        let made = command.stdin(Stdio::null()).output().expect("openssl can be started");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self::azurite(folder, Some([certificate, key])).await
    }

    /// The certificate (PEM) that a server with TLS is known by.
    pub fn authority(&self) -> Option<Vec<u8>> {
        self.tls.then(|| fs::read(self.folder.path().join("tls.pem")).expect("the certificate was made"))
    }

    async fn azurite(folder: TempDir, tls: Option<[PathBuf; 2]>) -> Option<Self> {
        let (node, azurite) = (program("node")?, azurite()?);
        let port = free_port();
        let mut command = Command::new(node);
        command.arg(azurite).args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"]);
        command.arg(folder.path().join("data")).args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        if let Some([certificate, key]) = &tls {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        Some(Self::run(command, folder, Cloud::Azure, tls.is_some(), port).await)
    }

    async fn run(mut command: Command, folder: TempDir, cloud: Cloud, tls: bool, port: u16) -> Self {
        let log = fs::File::create(folder.path().join("log")).expect("a file can be made");
        let errors = log.try_clone().expect("a file can be opened twice");
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().expect("the server can be started");
        let server = Self { child, folder, cloud, tls, port };
        until("the server of the object store has the bucket", UP, async || server.make_bucket("kaai").await).await;
        server
    }

    /// Makes a bucket; `None` when the server is not there yet.
    async fn make_bucket(&self, name: &str) -> Option<()> {
        tls::install();
        let mut http = reqwest::Client::builder().timeout(Duration::from_secs(5));
        if let Some(pem) = self.authority() {
            http = http.add_root_certificate(reqwest::Certificate::from_pem(&pem).ok()?);
        }
        let http = http.build().ok()?;
        let request = match self.cloud {
            Cloud::Azure => {
                let address = format!("{}/{name}?restype=container", self.endpoint());
                let mut request = HttpRequest::new(Vec::new().into());
                *request.method_mut() = http::Method::PUT;
                *request.uri_mut() = address.parse().ok()?;
                request.headers_mut().insert("content-length", "0".parse().ok()?);
                let key = AzureCredential::AccessKey(AzureAccessKey::try_new(ACCOUNT_KEY).ok()?);
                AzureAuthorizer::new(&key, ACCOUNT).try_authorize(&mut request).ok()?;
                http.put(address).headers(request.headers().clone())
            }
            _ => {
                let builder = AmazonS3Builder::new().with_endpoint(self.endpoint()).with_bucket_name(name);
                let store =
                    builder.with_access_key_id("kaai").with_secret_access_key("kaai-secret").with_allow_http(true);
                let root = object_store::path::Path::default();
                let address = store.build().ok()?.signed_url(http::Method::PUT, &root, UP).await.ok()?;
                http.put(address)
            }
        };
        let status = request.send().await.ok()?.status();
        // Made before, though the answer did not come, is made.
        (status.is_success() || status == http::StatusCode::CONFLICT).then_some(())
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        match self.cloud {
            Cloud::Azure => format!("{scheme}://127.0.0.1:{}/{ACCOUNT}", self.port),
            _ => format!("{scheme}://127.0.0.1:{}", self.port),
        }
    }

    /// The address of a store of its own in the bucket.
    pub fn address(&self, prefix: &str) -> String {
        match self.cloud {
            Cloud::Azure => format!("az://kaai/{prefix}"),
            _ => format!("s3://kaai/{prefix}"),
        }
    }

    /// Settings for a store of its own in the bucket.
    ///
    /// # Panics
    ///
    /// When the prefix is no part of an address.
    pub fn settings(&self, prefix: &str) -> StoreSettings {
        self.at(&self.address(prefix), &self.credentials())
    }

    /// Settings for a store at any address of this server, with any credentials.
    ///
    /// # Panics
    ///
    /// When one of them is none.
    pub fn at(&self, address: &str, credentials: &str) -> StoreSettings {
        let mut settings = StoreSettings::from(address.parse::<crate::store::Address>().expect("an address"));
        settings.endpoint = Some(self.endpoint().parse().expect("an address"));
        settings.credentials = Some(Credentials::parse(self.cloud, credentials).expect("credentials"));
        settings
    }

    /// The text of a file with credentials that it accepts.
    pub fn credentials(&self) -> String {
        match self.cloud {
            Cloud::Azure => format!("azure_storage_account_name={ACCOUNT}\nazure_storage_account_key={ACCOUNT_KEY}\n"),
            _ => "aws_access_key_id=kaai\naws_secret_access_key=kaai-secret\n".to_owned(),
        }
    }

    /// A folder that is there as long as the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        // One that has ended by itself is fine too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Azurite as `tools/stores.py` installed it.
fn azurite() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = "node_modules/azurite/dist/src/blob/main.js";
    here.ancestors().map(|folder| folder.join(".tools/azurite").join(script)).find(|path| path.is_file())
}
