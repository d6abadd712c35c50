//! Which headers go on to the other side (RFC 9110 §7.6.1), and which the router adds.
//!
//! A message's names are looked at once and remembered as [`Marks`]: asking a header map for each of twenty names, most of which are
//! not there, would cost more than anything else that is done with them.

use hyper::{
    HeaderMap,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use crate::identity::{REQUEST_ID, TRACEPARENT};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Names that the router does something about. The first nine concern one connection alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Also names others that concern one connection alone.
    Connection,
    KeepAlive,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Authorization,
    ClientRequestId,
    Expect,
    ForwardedFor,
    ForwardedProto,
    Host,
    RequestId,
    Traceparent,
}

/// Headers that concern one connection alone, in the order of their marks.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What `Connection` may not name: it frames, addresses or identifies the message.
const PROTECTED: [HeaderName; 5] = [CONTENT_LENGTH, HOST, AUTHORIZATION, REQUEST_ID, TRACEPARENT];

/// Which names of interest a message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks(u32);

impl Marks {
    /// Looks at every name once.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().filter_map(|name| mark(name.as_str())).fold(0, |marks, mark| marks | 1 << mark as u32))
    }

    /// Whether the message has it.
    pub(crate) fn has(self, mark: Mark) -> bool {
        self.0 & (1 << mark as u32) != 0
    }
}

fn mark(name: &str) -> Option<Mark> {
    Some(match name {
        "connection" => Mark::Connection,
        "keep-alive" => Mark::KeepAlive,
        "proxy-authenticate" => Mark::ProxyAuthenticate,
        "proxy-authorization" => Mark::ProxyAuthorization,
        "proxy-connection" => Mark::ProxyConnection,
        "te" => Mark::Te,
        "trailer" => Mark::Trailer,
        "transfer-encoding" => Mark::TransferEncoding,
        "upgrade" => Mark::Upgrade,
        "authorization" => Mark::Authorization,
        "x-ms-client-request-id" => Mark::ClientRequestId,
        "expect" => Mark::Expect,
        "x-forwarded-for" => Mark::ForwardedFor,
        "x-forwarded-proto" => Mark::ForwardedProto,
        "host" => Mark::Host,
        "x-request-id" => Mark::RequestId,
        "traceparent" => Mark::Traceparent,
        _ => return None,
    })
}

/// Drops what concerns one connection alone, and what `Connection` names besides.
///
/// Not everything is dropped on a sender's word: `Connection: content-length` would take the length from a body that has one.
pub(crate) fn drop_hop_by_hop(headers: &mut HeaderMap, marks: Marks) {
    if marks.has(Mark::Connection) {
        let named: Vec<HeaderName> = tokens(headers)
            // The usual two are no names to look for: one is dropped by its mark, the other is no header.
            .filter(|token| !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close"))
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .filter(|name| headers.contains_key(name) && !PROTECTED.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for (bit, name) in HOP_BY_HOP.iter().enumerate() {
        if marks.0 & (1 << bit) != 0 {
            headers.remove(name);
        }
    }
}

/// Whether the sender ends the connection after this message.
pub(crate) fn closes(headers: &HeaderMap) -> bool {
    tokens(headers).any(|token| token.eq_ignore_ascii_case(b"close"))
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(CONNECTION).into_iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Makes a caller's headers fit for a replica.
pub(crate) fn for_replica(headers: &mut HeaderMap, marks: Marks, peer: &HeaderValue, consumes_authorization: bool) {
    drop_hop_by_hop(headers, marks);
    if marks.has(Mark::Expect) {
        // The router has answered it already.
        headers.remove(EXPECT);
    }
    if marks.has(Mark::Authorization) && consumes_authorization {
        // The key has done its work; the script, its logs and its telemetry have no use for it.
        headers.remove(AUTHORIZATION);
    }
    if !marks.has(Mark::Host) {
        headers.insert(HOST, HeaderValue::from_static("kaai"));
    }
    let forwarded = match marks.has(Mark::ForwardedFor) {
        false => Some(peer.clone()),
        true => joined(headers.get_all(&FORWARDED_FOR).iter().chain([peer])),
    };
    if let Some(forwarded) = forwarded {
        headers.insert(FORWARDED_FOR, forwarded);
    }
    if !marks.has(Mark::ForwardedProto) {
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
    use crate::identity::CLIENT_REQUEST_ID;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn drop_them(headers: &mut HeaderMap) {
        drop_hop_by_hop(headers, Marks::of(headers));
    }

    const PEER: HeaderValue = HeaderValue::from_static("10.0.0.9");

    #[test]
    fn every_name_of_one_connection_has_the_mark_of_its_place() {
        for (bit, name) in HOP_BY_HOP.iter().enumerate() {
            assert_eq!(mark(name.as_str()).map(|mark| mark as usize), Some(bit), "{name}");
        }
        let others = [
            (AUTHORIZATION, Mark::Authorization),
            (CLIENT_REQUEST_ID, Mark::ClientRequestId),
            (EXPECT, Mark::Expect),
            (FORWARDED_FOR, Mark::ForwardedFor),
            (FORWARDED_PROTO, Mark::ForwardedProto),
            (HOST, Mark::Host),
            (REQUEST_ID, Mark::RequestId),
            (TRACEPARENT, Mark::Traceparent),
        ];
        for (name, expected) in others {
            assert_eq!(mark(name.as_str()), Some(expected));
        }
    }

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
        drop_them(&mut map);
        assert_eq!(map, headers(&[("x-kept", "1")]));
    }

    #[test]
    fn a_sender_cannot_have_framing_or_address_dropped() {
        let mut map = headers(&[("connection", "content-length, host"), ("content-length", "3"), ("host", "h")]);
        drop_them(&mut map);
        assert_eq!(map, headers(&[("content-length", "3"), ("host", "h")]));
    }

    #[test]
    fn a_farewell_is_heard_in_any_spelling() {
        let says = |value| closes(&headers(&[("connection", value)]));
        assert!(says("close") && says("x, Close"));
        assert!(!says("keep-alive") && !says("closed"));
        assert!(!closes(&HeaderMap::new()));
    }

    #[test]
    fn a_replica_sees_who_called_and_never_the_key() {
        let mut map =
            headers(&[("authorization", "Bearer k"), ("x-forwarded-for", "1.2.3.4"), ("expect", "100-continue")]);
        let marks = Marks::of(&map);
        for_replica(&mut map, marks, &PEER, true);
        let expected =
            headers(&[("x-forwarded-for", "1.2.3.4, 10.0.0.9"), ("host", "kaai"), ("x-forwarded-proto", "http")]);
        assert_eq!(map, expected);
    }

    #[test]
    fn an_open_service_sees_the_authorization_that_was_sent() {
        let mut map = headers(&[("authorization", "Basic x"), ("host", "example"), ("x-forwarded-proto", "https")]);
        let marks = Marks::of(&map);
        for_replica(&mut map, marks, &PEER, false);
        assert_eq!(map["authorization"], "Basic x");
        assert_eq!((&map["host"], &map["x-forwarded-proto"]), (&"example".parse().unwrap(), &"https".parse().unwrap()));
        assert_eq!(map["x-forwarded-for"], PEER);
    }
}
