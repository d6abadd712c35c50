//! Stores in a cloud, as the settings say: whose login, which server, and how long anything may take.

use std::{sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, path::Path, prefix::PrefixStore,
};

use super::{Cloud, Error, fault::explain};
use crate::{
    config::{Credentials, StoreSettings},
    tls,
};

/// How long it may take to reach the store's server.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a request is sent again that the server could not answer, or answered with an error of its own.
const RETRIES: usize = 4;
/// After this time no request is sent again.
const RETRYING: Duration = Duration::from_secs(30);

/// Makes the client; nothing is sent yet.
pub(super) fn open(
    settings: &StoreSettings,
    cloud: Cloud,
    bucket: &str,
    prefix: &Path,
) -> Result<Arc<dyn ObjectStore>, Error> {
    tls::install();
    let options = options(settings)?;
    let opened = match cloud {
        Cloud::S3 => s3(settings, bucket, options),
        Cloud::Azure => azure(settings, bucket, options),
        Cloud::Google => google(settings, bucket, options),
    };
    let store = opened.map_err(|error| unusable(settings, cloud, &error))?;
    Ok(if prefix.is_root() { store } else { Arc::new(PrefixStore::new(store, prefix.clone())) })
}

// Without a file of ours the variables and places are those that each cloud's own tools read: AWS_*, web identity and instance
// metadata, AZURE_* and managed identity, GOOGLE_* and its default credentials. With one, none of them counts.

fn s3(settings: &StoreSettings, bucket: &str, options: ClientOptions) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = match &settings.credentials {
        Some(Credentials::S3(keys)) => {
            keys.iter().fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(*key, value))
        }
        _ => AmazonS3Builder::from_env(),
    };
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    Ok(Arc::new(builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry()).build()?))
}

fn azure(
    settings: &StoreSettings,
    container: &str,
    options: ClientOptions,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = match &settings.credentials {
        Some(Credentials::Azure(keys)) => {
            keys.iter().fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| builder.with_config(*key, value))
        }
        _ => MicrosoftAzureBuilder::from_env(),
    };
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/').to_owned());
    }
    Ok(Arc::new(builder.with_container_name(container).with_client_options(options).with_retry(retry()).build()?))
}

fn google(
    settings: &StoreSettings,
    bucket: &str,
    options: ClientOptions,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = match &settings.credentials {
        Some(Credentials::Google(json)) => GoogleCloudStorageBuilder::new().with_service_account_key(json),
        _ => GoogleCloudStorageBuilder::from_env(),
    };
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint.as_str().trim_end_matches('/'));
    }
    Ok(Arc::new(builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry()).build()?))
}

fn options(settings: &StoreSettings) -> Result<ClientOptions, Error> {
    let plain = settings.endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http");
    // A whole model takes as long as it takes; a server that is silent does not.
    let mut options = ClientOptions::new()
        .with_allow_http(plain)
        // Without TLS there is nothing to trust, and a small container has no certificates. Other logins than a file's come by TLS.
        .with_no_system_certificates(plain && settings.credentials.is_some())
        .with_connect_timeout(CONNECT)
        .with_read_timeout(settings.patience)
        .with_timeout_disabled();
    if let Some(pem) = &settings.ca {
        let found = Certificate::from_pem_bundle(pem).unwrap_or_default();
        if found.is_empty() {
            return Err(Error::Setting("the file of --store-ca holds no certificate in the form of PEM".to_owned()));
        }
        options = found.into_iter().fold(options, ClientOptions::with_root_certificate);
    }
    Ok(options)
}

fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRYING }
}

fn unusable(settings: &StoreSettings, cloud: Cloud, error: &object_store::Error) -> Error {
    let text = error.to_string();
    let cause = match cloud {
        Cloud::Azure if text.contains("Account must be specified") => {
            "the account is not known; put azure_storage_account_name into --store-credentials FILE, or set AZURE_STORAGE_ACCOUNT_NAME".to_owned()
        }
        _ => explain(error),
    };
    Error::Start { address: settings.address.to_string(), cause }
}
