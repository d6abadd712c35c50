//! Names of requests: `x-request-id` and `traceparent`, made where the caller sent none.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use uuid::{Builder, Uuid};

use crate::headers::{Mark, Marks};

/// The id of a request, in v1's spelling.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The id that v1's clients give a request.
pub(crate) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// The W3C trace context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Makes ids that nobody else makes: a random start for each thread, then a mix of a counter, which costs no system call.
#[derive(Debug)]
pub(crate) struct Ids {
    seed: (u64, u64),
    counter: AtomicU64,
}

impl Ids {
    /// A start of its own.
    pub(crate) fn new() -> Self {
        Self { seed: Uuid::new_v4().as_u64_pair(), counter: AtomicU64::new(0) }
    }

    fn next(&self) -> (u64, u64) {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        (mix(self.seed.0.wrapping_add(count)), mix(self.seed.1 ^ count))
    }

    /// Sees to it that a request has an id and a trace context, and returns its names.
    pub(crate) fn give(&self, headers: &mut HeaderMap, marks: Marks) -> Names {
        let given = if marks.has(Mark::RequestId) { headers.get(&REQUEST_ID).cloned() } else { None };
        let request = given.unwrap_or_else(|| {
            let made = self.request_id();
            headers.insert(REQUEST_ID, made.clone());
            made
        });
        if !marks.has(Mark::Traceparent) {
            let ((high, low), (span, _)) = (self.next(), self.next());
            headers.insert(TRACEPARENT, traceparent(high, low, span));
        }
        let client = if marks.has(Mark::ClientRequestId) { headers.get(&CLIENT_REQUEST_ID).cloned() } else { None };
        Names { request, client }
    }

    fn request_id(&self) -> HeaderValue {
        let (high, low) = self.next();
        let id = Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes()).into_uuid();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("digits and hyphens are a header value")
    }
}

/// Version 00. Sampled: whether anything is kept is decided further down, and an unset flag would forbid it there. The lowest bits are
/// set since an id of zeros is invalid.
fn traceparent(high: u64, low: u64, span: u64) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    for (at, word) in [(3, high), (19, low | 1), (36, span | 1)] {
        for (index, digit) in text[at..at + 16].iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(word >> (60 - 4 * index)) as usize & 0xf];
        }
    }
    HeaderValue::from_bytes(&text).expect("digits and hyphens are a header value")
}

/// The names of a request, which every answer to it repeats.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Its id.
    pub(crate) request: HeaderValue,
    /// The id that v1's clients give it.
    pub(crate) client: Option<HeaderValue>,
}

impl Names {
    /// The id as text; empty when the caller's own is none.
    pub(crate) fn text(&self) -> &str {
        self.request.to_str().unwrap_or_default()
    }

    /// Adds the names to an answer that does not have them.
    pub(crate) fn echo(&self, headers: &mut HeaderMap) {
        headers.entry(REQUEST_ID).or_insert_with(|| self.request.clone());
        if let Some(client) = &self.client {
            headers.entry(CLIENT_REQUEST_ID).or_insert_with(|| client.clone());
        }
    }
}

/// The finalizer of SplitMix64: neighbours become strangers, and no two inputs share an output.
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_request_gets_an_id_and_a_trace_of_its_own() {
        let (ids, mut seen) = (Ids::new(), HashSet::new());
        for _ in 0..1000 {
            let mut headers = HeaderMap::new();
            ids.give(&mut headers, Marks::of(&HeaderMap::new()));
            let (id, trace) = (headers[&REQUEST_ID].to_str().unwrap(), headers[&TRACEPARENT].to_str().unwrap());
            assert!(id.parse::<Uuid>().is_ok_and(|id| id.get_version_num() == 4), "{id}");
            assert!(trace.len() == 55 && trace.starts_with("00-") && trace.ends_with("-01"), "{trace}");
            assert!(seen.insert(id.to_owned()) && seen.insert(trace.to_owned()));
        }
    }

    #[test]
    fn what_the_caller_sent_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("mine"));
        headers.insert(TRACEPARENT, HeaderValue::from_static("00-a-b-00"));
        let before = headers.clone();
        let marks = Marks::of(&headers);
        Ids::new().give(&mut headers, marks);
        assert_eq!(headers, before);
    }
}
