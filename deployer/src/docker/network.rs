//! The network of this place's containers: there for what scripts call, not for being called.

use std::collections::HashMap;

use bollard::models::NetworkCreateRequest;
use proto::failure::{Failure, Stage};

use super::{api::Api, container::place_labels};

/// A network by its name.
pub(super) struct Network {
    name: String,
    /// The identity of the place, if the network is this place's own.
    own: Option<String>,
}

impl Network {
    /// The one that is given, or else one that is made for the place.
    pub(super) fn new(given: Option<String>, identity: &str) -> Self {
        match given {
            Some(name) => Self { name, own: None },
            None => Self { name: format!("kaai-{identity}"), own: Some(identity.to_owned()) },
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes it, if it is this place's own and not there.
    pub(super) async fn ensure(&self, api: &Api) -> Result<(), Failure> {
        let failed = |why: String| {
            let cause = format!("the network {} for replicas cannot be used: {why}", self.name);
            Failure::platform(Stage::Starting, cause, "mend that, then deploy again")
        };
        let found = api.network(&self.name).await.map_err(|error| failed(error.to_string()))?;
        match (&self.own, found) {
            (_, Some(_)) => Ok(()),
            (None, None) => Err(failed("it is not there".to_owned())),
            (Some(identity), None) => {
                // Containers in it do not reach each other.
                let apart = ("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned());
                let request = NetworkCreateRequest {
                    name: self.name.clone(),
                    driver: Some("bridge".to_owned()),
                    options: Some(HashMap::from([apart])),
                    labels: Some(place_labels(identity)),
                    ..NetworkCreateRequest::default()
                };
                api.create_network(request).await.map_err(|error| failed(error.to_string()))
            }
        }
    }

    /// Takes it away, if it is this place's own.
    pub(super) async fn remove(&self, api: &Api) {
        if self.own.is_some()
            && let Err(error) = api.remove_network(&self.name).await
        {
            tracing::warn!(%error, network = self.name, "the network of replicas cannot be removed");
        }
    }
}
