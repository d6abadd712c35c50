//! Lines for whoever watches.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use rattler::install::{Reporter, Transaction};
use rattler_conda_types::{PrefixRecord, RepoDataRecord};

/// Says a line on standard error.
pub(crate) fn line(text: &str) {
    // Nobody to hear it is no reason to stop.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Tells which packages are fetched.
#[derive(Default)]
pub(crate) struct Fetching(Mutex<Vec<String>>);

impl Reporter for Fetching {
    fn on_transaction_start(&self, _: &Transaction<PrefixRecord, RepoDataRecord>) {}
    fn on_transaction_operation_start(&self, _: usize) {}

    fn on_populate_cache_start(&self, _: usize, record: &RepoDataRecord) -> usize {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = record.package_record.size.map_or(String::new(), |size| format!(" ({:.1} MB)", size as f64 / 1e6));
        names.push(format!("{}{size}", record.identifier));
        names.len() - 1
    }

    fn on_validate_start(&self, entry: usize) -> usize {
        entry
    }

    fn on_validate_complete(&self, _: usize) {}

    fn on_download_start(&self, entry: usize) -> usize {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(entry) {
            line(&format!("Downloading {name}"));
        }
        entry
    }

    fn on_download_progress(&self, _: usize, _: u64, _: Option<u64>) {}
    fn on_download_completed(&self, _: usize) {}
    fn on_populate_cache_complete(&self, _: usize) {}

    fn on_unlink_start(&self, operation: usize, _: &PrefixRecord) -> usize {
        operation
    }

    fn on_unlink_complete(&self, _: usize) {}

    fn on_link_start(&self, operation: usize, _: &RepoDataRecord) -> usize {
        operation
    }

    fn on_link_complete(&self, _: usize) {}
    fn on_transaction_operation_complete(&self, _: usize) {}
    fn on_transaction_complete(&self) {}

    fn on_post_link_start(&self, _: &str, _: &str) -> usize {
        0
    }

    fn on_post_link_complete(&self, _: usize, _: bool) {}

    fn on_pre_unlink_start(&self, _: &str, _: &str) -> usize {
        0
    }

    fn on_pre_unlink_complete(&self, _: usize, _: bool) {}
}
