//! The login at an object store, from a file: never from an argument, and never shown.

use object_store::{aws::AmazonS3ConfigKey, azure::AzureConfigKey};

use crate::store::Cloud;

/// Who we are to an object store.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A key of Amazon's kind.
    S3(Vec<(AmazonS3ConfigKey, String)>),
    /// An account of Azure's with a key, a token or a principal.
    Azure(Vec<(AzureConfigKey, String)>),
    /// Google's key file, as it is.
    Google(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

const S3: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
const AZURE: [&str; 6] = [
    "azure_storage_account_name",
    "azure_storage_account_key",
    "azure_storage_sas_key",
    "azure_tenant_id",
    "azure_client_id",
    "azure_client_secret",
];

impl Credentials {
    /// Reads the text of a file. What is wrong is said without repeating a value.
    pub(crate) fn parse(cloud: Cloud, text: &str) -> Result<Self, String> {
        match cloud {
            Cloud::S3 => {
                let found = lines(text, &S3)?;
                needed(&found, &S3[..2])?;
                Ok(Self::S3(keyed(found)))
            }
            Cloud::Azure => {
                let found = lines(text, &AZURE)?;
                needed(&found, &AZURE[..1])?;
                let has = |name: &str| found.iter().any(|(key, _)| key == name);
                if !has(AZURE[1]) && !has(AZURE[2]) && !AZURE[3..].iter().all(|name| has(name)) {
                    let [_, key, sas, tenant, client, secret] = AZURE;
                    return Err(format!("it has neither {key} nor {sas} nor all of {tenant}, {client} and {secret}"));
                }
                Ok(Self::Azure(keyed(found)))
            }
            Cloud::Google => {
                let known: serde_json::Value =
                    serde_json::from_str(text).map_err(|_| "it is not the JSON of a Google key".to_owned())?;
                match known["private_key"].is_string() && known["client_email"].is_string() {
                    true => Ok(Self::Google(text.to_owned())),
                    false => {
                        Err("it has no private_key and client_email: take the JSON key of a service account".to_owned())
                    }
                }
            }
        }
    }
}

/// Lines `KEY=VALUE`; comments, empty lines and the one heading of a file that Amazon's tools wrote are passed over.
fn lines(text: &str, known: &[&str]) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut headings = 0;
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') && line.ends_with(']') {
            headings += 1;
            match headings {
                1 => continue,
                _ => return Err(format!("line {number} begins a second profile; leave one")),
            }
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(format!("line {number} is not KEY=VALUE"));
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        if !known.contains(&key.as_str()) {
            return Err(format!("line {number} has a key that is none of {}", known.join(", ")));
        }
        if value.is_empty() || found.iter().any(|(there, _)| *there == key) {
            return Err(format!("line {number}: {key} has no value, or a second one"));
        }
        found.push((key, value.to_owned()));
    }
    Ok(found)
}

fn needed(found: &[(String, String)], names: &[&str]) -> Result<(), String> {
    let missing: Vec<_> = names.iter().filter(|name| !found.iter().any(|(key, _)| key == *name)).copied().collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("it has no {}", missing.join(" and no "))) }
}

fn keyed<K: std::str::FromStr>(found: Vec<(String, String)>) -> Vec<(K, String)> {
    found.into_iter().filter_map(|(key, value)| Some((key.parse().ok()?, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(cloud: Cloud, text: &str) -> String {
        let error = Credentials::parse(cloud, text).unwrap_err();
        assert!(!error.contains("hush"), "{error}");
        error
    }

    #[test]
    fn a_file_of_amazons_tools_is_read_as_it_is() {
        let text = "# mine\n[default]\naws_access_key_id = me\nAWS_SECRET_ACCESS_KEY=a=b/c\n\n";
        let Ok(Credentials::S3(keys)) = Credentials::parse(Cloud::S3, text) else { panic!() };
        assert_eq!(keys[0], (AmazonS3ConfigKey::AccessKeyId, "me".to_owned()));
        assert_eq!(keys[1], (AmazonS3ConfigKey::SecretAccessKey, "a=b/c".to_owned()));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named_and_no_value_is_repeated() {
        assert_eq!(refused(Cloud::S3, "aws_access_key_id=hush"), "it has no aws_secret_access_key");
        assert!(refused(Cloud::S3, "aws_secret_key=hush").starts_with("line 1 has a key that is none of aws_access"));
        assert_eq!(refused(Cloud::S3, "\nhush"), "line 2 is not KEY=VALUE");
        let two = "[a]\naws_access_key_id=hush\n[b]\naws_access_key_id=hush";
        assert!(refused(Cloud::S3, two).starts_with("line 3 begins a second profile"));
        assert!(refused(Cloud::Azure, "azure_storage_account_name=me").contains("neither azure_storage_account_key"));
        assert!(refused(Cloud::Google, "hush").contains("not the JSON"));
        assert!(refused(Cloud::Google, r#"{"type": "hush"}"#).contains("no private_key"));
    }

    #[test]
    fn an_account_of_azures_takes_a_key_a_token_or_a_principal() {
        for more in [
            "azure_storage_account_key=a2V5",
            "azure_storage_sas_key=sv=2024&sig=x",
            "azure_tenant_id=t\nazure_client_id=c\nazure_client_secret=s",
        ] {
            let text = format!("azure_storage_account_name=me\n{more}\n");
            let Ok(Credentials::Azure(keys)) = Credentials::parse(Cloud::Azure, &text) else { panic!("{more}") };
            assert_eq!(keys.len(), text.lines().count());
        }
    }
}
