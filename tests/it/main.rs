//! What crosses components, in one binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod by_hand;
mod command_line;
mod components;
mod compose;
mod examples;
mod failures;
mod house;
mod life;
mod permissions;
mod prune;
mod readme;
mod rollouts;
mod samples;

use std::sync::OnceLock;

use tests::Kaai;

/// One kaai for all tests that neither stop it nor count what is in it.
fn shared() -> &'static Kaai {
    static SHARED: OnceLock<SharedKaai> = OnceLock::new();
    &SHARED.get_or_init(SharedKaai::start).0
}

/// Ends with the test process: statics are never dropped, so a guardian process that outlives it does the ending.
struct SharedKaai(Kaai);

impl SharedKaai {
    fn start() -> Self {
        let kaai = Kaai::start();
        kaai.end_with_this_process();
        Self(kaai)
    }
}
