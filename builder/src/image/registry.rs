//! Registries: manifests and blobs of images, fetched and pushed with patience.
//!
//! It knows the OCI distribution protocol through its client, and logins. It does not know what an environment is.

mod error;

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_distribution::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::{IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex, OciImageManifest},
};
use runtime::backoff::Backoff;
use sha2::Digest as _;
use tokio::{io::AsyncReadExt, sync::Semaphore};
use tokio_util::io::StreamReader;

pub(crate) use self::error::Error;
use self::error::{unable, understood};
use super::login::Logins;

/// How often what may pass is tried.
const ATTEMPTS: u32 = 5;
/// How long a registry may take to accept a connection, and to send the next piece of an answer.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);
/// How many requests to registries are on their way at a time, and so how many connections there are to one.
const AT_A_TIME: usize = 32;
/// The largest configuration of an image that is read.
const LARGEST_CONFIG: u64 = 8 << 20;
/// How many bytes of a file are read and sent at a time.
const PIECE: usize = 256 << 10;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    pub(crate) logins: Logins,
    /// Certificates of authorities (PEM) to trust besides the system's.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// Hosts that are spoken to without TLS, besides those on this machine.
    pub(crate) insecure: Vec<String>,
}

/// Speaks to registries. Clones share connections and tokens.
#[derive(Clone)]
pub(crate) struct Registries {
    encrypted: Client,
    plain: Client,
    insecure: Vec<String>,
    logins: Logins,
    turns: Arc<Semaphore>,
}

impl Registries {
    /// Opens the client.
    ///
    /// # Errors
    ///
    /// Fails when a certificate is none.
    pub(crate) fn new(access: Access) -> Result<Self, String> {
        runtime::tls::install();
        let client = |protocol| {
            let certificate = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: data.clone() };
            let config = ClientConfig {
                protocol,
                use_monolithic_push: true,
                extra_root_certificates: access.authorities.iter().map(certificate).collect(),
                connect_timeout: Some(CONNECT),
                read_timeout: Some(SILENCE),
                user_agent: concat!("kaai-builder/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            };
            Client::try_from(config).map_err(|error| error.to_string())
        };
        let (encrypted, plain) = (client(ClientProtocol::Https)?, client(ClientProtocol::Http)?);
        Ok(Self {
            encrypted,
            plain,
            insecure: access.insecure,
            logins: access.logins,
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
        })
    }

    fn client(&self, image: &Reference) -> &Client {
        let host = image.resolve_registry();
        if is_here(host) || self.insecure.iter().any(|insecure| insecure == host) {
            &self.plain
        } else {
            &self.encrypted
        }
    }

    /// The digest of what a tag or digest names; `None` when there is no such thing.
    pub(crate) async fn digest(&self, image: &Reference) -> Result<Option<String>, Error> {
        let asked = self.patiently(image, async || {
            self.client(image).fetch_manifest_digest(image, &self.logins.of(image.resolve_registry())).await
        });
        absent(asked.await)
    }

    /// The manifest of an image for this machine's kind, and its digest.
    pub(crate) async fn manifest(&self, image: &Reference) -> Result<(OciImageManifest, String), Error> {
        self.patiently(image, async || {
            self.client(image).pull_image_manifest(image, &self.logins.of(image.resolve_registry())).await
        })
        .await
    }

    /// The manifest's own bytes, for a copy that keeps the digest; `None` when there is no such thing.
    pub(crate) async fn manifest_bytes(&self, image: &Reference) -> Result<Option<(Bytes, String)>, Error> {
        let types = [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
        let asked = self.patiently(image, async || {
            self.client(image).pull_manifest_raw(image, &self.logins.of(image.resolve_registry()), &types).await
        });
        absent(asked.await)
    }

    /// What a manifest that names an image by digest as its subject says of it.
    pub(crate) async fn described(&self, image: &Reference) -> Result<OciDescriptor, Error> {
        let found = self.manifest_bytes(image).await?;
        let (bytes, digest) = found.ok_or_else(|| Error::Missing(image.whole()))?;
        let manifest: Option<OciImageManifest> = serde_json::from_slice(&bytes).ok();
        let kind = manifest.and_then(|manifest| manifest.media_type).unwrap_or_else(|| OCI_IMAGE_MEDIA_TYPE.to_owned());
        Ok(OciDescriptor { digest, ..describe(&kind, &bytes) })
    }

    /// A small blob, such as an image's configuration.
    pub(crate) async fn small_blob(&self, image: &Reference, blob: &OciDescriptor) -> Result<Vec<u8>, Error> {
        if u64::try_from(blob.size).unwrap_or(u64::MAX) > LARGEST_CONFIG {
            let why = format!("its configuration has {} bytes, and {LARGEST_CONFIG} are read", blob.size);
            return Err(Error::Damaged { what: image.whole(), why });
        }
        self.patiently(image, async || {
            let mut bytes = Vec::new();
            let stream = self.client(image).pull_blob_stream(image, blob).await?;
            StreamReader::new(stream.stream).take(LARGEST_CONFIG).read_to_end(&mut bytes).await?;
            Ok(bytes)
        })
        .await
    }

    /// A blob as it comes; the end of the stream is an error if it was not what its digest says.
    pub(crate) async fn blob(
        &self,
        image: &Reference,
        blob: &OciDescriptor,
    ) -> Result<impl futures::Stream<Item = io::Result<Bytes>> + Send + use<>, Error> {
        let stream = self.patiently(image, async || self.client(image).pull_blob_stream(image, blob).await).await?;
        Ok(stream.stream)
    }

    /// Has a blob of one image in the repository of another: there already, mounted by the registry, or copied through this machine.
    pub(crate) async fn copy_blob(&self, from: &Reference, to: &Reference, blob: &OciDescriptor) -> Result<(), Error> {
        self.log_in(to, RegistryOperation::Push).await?;
        let there = self.patiently(to, async || self.client(to).blob_exists(to, &blob.digest).await);
        if there.await? || from.repository() == to.repository() && from.registry() == to.registry() {
            return Ok(());
        }
        if from.resolve_registry() == to.resolve_registry() {
            // A registry that cannot mount answers as if it was asked for an upload.
            match self.client(to).mount_blob(to, from, &blob.digest).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(%error, digest = blob.digest, "not mounted; copied"),
            }
        }
        self.log_in(from, RegistryOperation::Pull).await?;
        self.patiently(to, async || {
            let stream = self.client(from).pull_blob_stream(from, blob).await?;
            let pieces = stream.stream.map_err(OciDistributionError::from);
            self.client(to).push_blob_stream(to, pieces, &blob.digest, u64::try_from(blob.size).ok()).await
        })
        .await
        .map(drop)
        .map_err(|error| match error {
            // It was pushed as it was fetched.
            Error::Damaged { why, .. } => Error::Damaged { what: from.whole(), why },
            error => error,
        })
    }

    /// Pushes bytes under their digest.
    pub(crate) async fn push_bytes(
        &self,
        to: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<OciDescriptor, Error> {
        self.log_in(to, RegistryOperation::Push).await?;
        let described = describe(media_type, bytes);
        let there = self.patiently(to, async || self.client(to).blob_exists(to, &described.digest).await);
        if !there.await? {
            let bytes = Bytes::copy_from_slice(bytes);
            self.patiently(to, async || self.client(to).push_blob(to, bytes.clone(), &described.digest).await).await?;
        }
        Ok(described)
    }

    /// Pushes a file as a blob.
    pub(crate) async fn push_file(&self, to: &Reference, blob: &OciDescriptor, file: &Path) -> Result<(), Error> {
        self.log_in(to, RegistryOperation::Push).await?;
        let there = self.patiently(to, async || self.client(to).blob_exists(to, &blob.digest).await);
        if there.await? {
            return Ok(());
        }
        self.patiently(to, async || {
            let file = tokio::fs::File::open(file).await?;
            let pieces =
                tokio_util::io::ReaderStream::with_capacity(file, PIECE).map(|piece| piece.map_err(Into::into));
            self.client(to).push_blob_stream(to, pieces, &blob.digest, u64::try_from(blob.size).ok()).await
        })
        .await
        .map(drop)
    }

    /// Pushes a manifest under a tag or digest, last of all that it names, and returns its digest.
    pub(crate) async fn push_manifest(
        &self,
        to: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<String, Error> {
        self.log_in(to, RegistryOperation::Push).await?;
        let digest = digest_of(&bytes);
        let kind = media_type
            .parse::<http::HeaderValue>()
            .map_err(|_| unable(to, "the type of its manifest is none".to_owned()))?;
        let bytes = Bytes::from(bytes);
        self.patiently(to, async || self.client(to).push_manifest_raw(to, bytes.clone(), kind.clone()).await).await?;
        Ok(digest)
    }

    /// What refers to an image: asked for by the protocol's own way, else by its tag of old.
    pub(crate) async fn referrers(&self, image: &Reference) -> Result<OciImageIndex, Error> {
        self.patiently(image, async || self.client(image).pull_referrers(image, None).await).await
    }

    async fn log_in(&self, image: &Reference, operation: RegistryOperation) -> Result<(), Error> {
        let login = self.logins.of(image.resolve_registry());
        self.patiently(image, async || self.client(image).auth(image, &login, operation).await).await.map(drop)
    }

    /// Tries what may pass again, after a growing pause.
    async fn patiently<T, F>(&self, image: &Reference, mut work: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, OciDistributionError>>,
    {
        self.client(image)
            .store_auth_if_needed(image.resolve_registry(), &self.logins.of(image.resolve_registry()))
            .await;
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(8));
        let mut attempt = 1;
        loop {
            let turn = self.turns.acquire().await;
            let worked = work().await;
            drop(turn);
            let error = match worked {
                Ok(value) => return Ok(value),
                Err(error) => understood(image, error),
            };
            if attempt == ATTEMPTS || !error.passes() {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "trying again");
            attempt += 1;
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// The digest of bytes, as OCI writes it.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    proto::id::Digest::from_sha256(sha2::Sha256::digest(bytes).into()).to_string()
}

/// The descriptor of bytes.
pub(crate) fn describe(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    OciDescriptor { media_type: media_type.to_owned(), digest: digest_of(bytes), size, ..OciDescriptor::default() }
}

/// Whether a host is this machine: Docker, too, speaks plain HTTP to it without being told.
fn is_here(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn absent<T>(asked: Result<T, Error>) -> Result<Option<T>, Error> {
    match asked {
        Ok(value) => Ok(Some(value)),
        Err(Error::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_this_machine_needs_no_tls() {
        for here in ["127.0.0.1:5000", "localhost", "127.9.9.9", "[::1]:5000"] {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in ["registry.example.com", "10.0.0.1:5000", "localhost.example.com:5000"] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
    }
}
