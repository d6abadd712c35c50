//! The container of one replica, whether this deployer made it or found it.

use std::{path::PathBuf, time::Duration};

use proto::failure::Failure;
use tokio::time::sleep;

use super::{Handle, api::Api, cannot_start};
use crate::{
    backend::Ended,
    host::{archives::disk, engine::Unit},
};

/// How long to wait before an engine that is away is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait before a container that has not ended is looked at again, when the wait for it did.
const MOMENT: Duration = Duration::from_millis(50);

/// The container of one replica.
pub struct Container {
    pub(super) api: Api,
    pub(super) handle: Handle,
    /// The file that it reads its order from.
    pub(super) order: PathBuf,
}

impl Unit for Container {
    fn handle(&self) -> serde_json::Value {
        serde_json::to_value(&self.handle).unwrap_or_default()
    }

    async fn go(&mut self, order: &str) -> Result<(), Failure> {
        std::fs::write(&self.order, format!("{order}\n")).map_err(|error| disk(&self.order, &error))?;
        self.api.start(&self.handle.container).await.map_err(|error| cannot_start(&error))
    }

    async fn ended(&mut self) -> Ended {
        loop {
            match self.api.state(&self.handle.container).await {
                Ok(None) => return Ended::Unknown,
                Ok(Some(state)) if !state.running.unwrap_or_default() => return how(state.exit_code),
                Ok(Some(_)) => {
                    self.api.wait(&self.handle.container).await;
                    sleep(MOMENT).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a container cannot be waited for yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn out_of_memory(&self) -> bool {
        let state = self.api.state(&self.handle.container).await.ok().flatten();
        state.and_then(|state| state.oom_killed).unwrap_or_default()
    }

    async fn ask_to_end(&mut self) {
        if let Err(error) = self.api.signal(&self.handle.container, "SIGTERM").await {
            tracing::warn!(%error, "a container could not be told to end");
        }
    }

    async fn kill(&mut self) {
        while let Err(error) = self.api.signal(&self.handle.container, "SIGKILL").await {
            tracing::warn!(%error, "a container cannot be ended yet");
            sleep(PAUSE).await;
        }
    }
}

/// What an exit code says: the process that is first in a container tells of a signal as a shell does.
fn how(code: Option<i64>) -> Ended {
    match code.and_then(|code| i32::try_from(code).ok()) {
        Some(code @ 129..160) => Ended::Signal(code - 128),
        Some(code) => Ended::Code(code),
        None => Ended::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_above_128_is_a_signal() {
        assert_eq!(how(Some(137)), Ended::Signal(9));
        assert_eq!(how(Some(143)), Ended::Signal(15));
        assert_eq!((how(Some(7)), how(Some(0)), how(None)), (Ended::Code(7), Ended::Code(0), Ended::Unknown));
    }
}
