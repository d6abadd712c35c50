//! CloudEvents 1.0 attributes as NATS headers (binary content mode): a pure translation.
//!
//! Source: CloudEvents NATS protocol binding 1.0.3, section 3.1. `ce-id` is also `Nats-Msg-Id`, so that the stream drops a repeated event.

/// The header by which a stream recognises a repeated message.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Who sent an event, when, and in which trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Names the event; the same event sent twice has the same id.
    pub id: String,
    /// The sender, `/kaai/packager/<instance>` for example.
    pub source: String,
    /// Noun and event, `deployment.requested` for example.
    pub event_type: String,
    /// When it was said (RFC 3339, UTC).
    pub time: Option<String>,
    /// The W3C trace context that it belongs to.
    pub traceparent: Option<String>,
}

const TYPE_PREFIX: &str = "kaai.v1.";

impl Envelope {
    /// The headers that carry this envelope.
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("ce-specversion", "1.0".to_owned()),
            ("ce-id", self.id.clone()),
            ("ce-source", self.source.clone()),
            ("ce-type", format!("{TYPE_PREFIX}{}", self.event_type)),
            ("content-type", "application/json".to_owned()),
            (MESSAGE_ID, self.id.clone()),
        ];
        headers.extend(self.time.clone().map(|time| ("ce-time", time)));
        headers.extend(self.traceparent.clone().map(|trace| ("traceparent", trace)));
        headers
    }

    /// Reads an envelope from headers; `get` looks one up by name.
    ///
    /// A message published by hand has none: what is missing is filled in from where the message was found, so that a redelivery gets the same id.
    pub fn from_headers<'a>(
        get: impl Fn(&str) -> Option<&'a str>,
        event_type: &str,
        stream: &str,
        sequence: u64,
    ) -> Self {
        let text = |name: &str| get(name).filter(|value| !value.is_empty()).map(str::to_owned);
        Self {
            id: text("ce-id").or_else(|| text(MESSAGE_ID)).unwrap_or_else(|| format!("{stream}/{sequence}")),
            source: text("ce-source").unwrap_or_else(|| "/unknown".to_owned()),
            event_type: text("ce-type")
                .and_then(|value| value.strip_prefix(TYPE_PREFIX).map(str::to_owned))
                .unwrap_or_else(|| event_type.to_owned()),
            time: text("ce-time"),
            traceparent: text("traceparent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn read(headers: &HashMap<&str, String>) -> Envelope {
        Envelope::from_headers(|name| headers.get(name).map(String::as_str), "deployment.requested", "KAAI_EVENTS", 7)
    }

    #[test]
    fn a_message_without_headers_gets_an_id_that_a_redelivery_keeps() {
        let envelope = read(&HashMap::new());
        assert_eq!(envelope.id, "KAAI_EVENTS/7");
        assert_eq!(envelope.event_type, "deployment.requested");
        assert_eq!(envelope, read(&HashMap::new()));
    }

    proptest! {
        #[test]
        fn an_envelope_is_read_as_written(id in "[ -~]{1,40}", source in "[!-~]{1,40}", time in proptest::option::of("[!-~]{1,30}"), trace in proptest::option::of("[!-~]{1,55}")) {
            let envelope = Envelope { id, source, event_type: "image.resolved".into(), time, traceparent: trace };
            let headers: HashMap<_, _> = envelope.to_headers().into_iter().collect();
            prop_assert_eq!(headers["ce-id"].clone(), headers[MESSAGE_ID].clone());
            prop_assert_eq!(read(&headers), envelope);
        }
    }
}
