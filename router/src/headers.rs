//! Which headers go on to the other side (RFC 9110 §7.6.1), and which the router adds.

use hyper::{
    HeaderMap,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers that concern one connection alone.
const HOP_BY_HOP: [HeaderName; 9] = [
    KEEP_ALIVE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    CONNECTION,
];

/// What `Connection` may not name: it frames, addresses or identifies the message.
const PROTECTED: [HeaderName; 5] =
    [CONTENT_LENGTH, HOST, AUTHORIZATION, crate::identity::REQUEST_ID, crate::identity::TRACEPARENT];

/// Drops what concerns one connection alone, and what `Connection` names besides.
///
/// Not everything is dropped on a sender's word: `Connection: content-length` would take the length from a body that has one.
pub(crate) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !PROTECTED.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Makes a caller's headers fit for a replica.
pub(crate) fn for_replica(headers: &mut HeaderMap, peer: &HeaderValue, consumes_authorization: bool) {
    drop_hop_by_hop(headers);
    // The router has answered it already.
    headers.remove(EXPECT);
    if consumes_authorization {
        // The key has done its work; the script, its logs and its telemetry have no use for it.
        headers.remove(AUTHORIZATION);
    }
    if !headers.contains_key(HOST) {
        headers.insert(HOST, HeaderValue::from_static("kaai"));
    }
    let forwarded = match headers.contains_key(&FORWARDED_FOR) {
        false => Some(peer.clone()),
        true => joined(headers.get_all(&FORWARDED_FOR).iter().chain([peer])),
    };
    if let Some(forwarded) = forwarded {
        headers.insert(FORWARDED_FOR, forwarded);
    }
    if !headers.contains_key(&FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

fn joined<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> Option<HeaderValue> {
    let values: Vec<_> = values.map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&values.join(&b", "[..])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    const PEER: HeaderValue = HeaderValue::from_static("10.0.0.9");

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("x-kept", "1"),
        ]);
        drop_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("x-kept", "1")]));
    }

    #[test]
    fn a_sender_cannot_have_framing_or_address_dropped() {
        let mut map = headers(&[("connection", "content-length, host"), ("content-length", "3"), ("host", "h")]);
        drop_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("content-length", "3"), ("host", "h")]));
    }

    #[test]
    fn a_replica_sees_who_called_and_never_the_key() {
        let mut map =
            headers(&[("authorization", "Bearer k"), ("x-forwarded-for", "1.2.3.4"), ("expect", "100-continue")]);
        for_replica(&mut map, &PEER, true);
        let expected =
            headers(&[("x-forwarded-for", "1.2.3.4, 10.0.0.9"), ("host", "kaai"), ("x-forwarded-proto", "http")]);
        assert_eq!(map, expected);
    }

    #[test]
    fn an_open_service_sees_the_authorization_that_was_sent() {
        let mut map = headers(&[("authorization", "Basic x"), ("host", "example"), ("x-forwarded-proto", "https")]);
        for_replica(&mut map, &PEER, false);
        assert_eq!(map["authorization"], "Basic x");
        assert_eq!((&map["host"], &map["x-forwarded-proto"]), (&"example".parse().unwrap(), &"https".parse().unwrap()));
        assert_eq!(map["x-forwarded-for"], PEER);
    }
}
