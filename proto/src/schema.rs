//! The generated documents of the contract: JSON Schema of each event, and AsyncAPI 3 of the whole.

use serde_json::{Map, Value, json};

use crate::{
    event::{Entry, catalogue},
    subject,
};

/// All generated documents, as pairs of file name (relative to `proto/schema`) and text.
pub fn documents() -> Vec<(String, String)> {
    let mut documents: Vec<_> =
        catalogue().iter().map(|entry| (format!("{}.v1.json", entry.event_type), pretty(&schema(entry)))).collect();
    documents.push(("asyncapi.json".to_owned(), pretty(&asyncapi())));
    documents
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    text.push('\n');
    text
}

fn schema(entry: &Entry) -> Value {
    let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    serde_json::to_value((entry.schema)(&mut generator)).expect("a schema is JSON")
}

fn asyncapi() -> Value {
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for entry in catalogue() {
        let name = entry.name;
        channels.insert(
            name.to_owned(),
            json!({
                "address": format!("{}.{{workspace}}.{}.{{service}}", subject::PREFIX, entry.event_type),
                "parameters": { "workspace": { "description": "the tenant" }, "service": { "description": "the service" } },
                "messages": { name: { "$ref": format!("#/components/messages/{name}") } },
                "description": if entry.stored { format!("kept in the stream {}", subject::EVENTS) } else { "core NATS, at most once".to_owned() },
            }),
        );
        operations.insert(
            format!("say{name}"),
            json!({
                "action": "send",
                "channel": { "$ref": format!("#/channels/{name}") },
                "summary": format!("said by {}; heard by {}", entry.said_by, entry.heard_by),
            }),
        );
        messages.insert(
            name.to_owned(),
            json!({
                "name": format!("kaai.v1.{}", entry.event_type),
                "contentType": "application/json",
                "headers": {
                    "type": "object",
                    "description": "CloudEvents 1.0, binary content mode; a message without headers is accepted",
                    "properties": { "ce-id": { "type": "string" }, "ce-source": { "type": "string" }, "ce-type": { "type": "string" },
                        "ce-time": { "type": "string", "format": "date-time" }, "traceparent": { "type": "string" } },
                },
                "payload": { "$ref": format!("{}.v1.json", entry.event_type) },
            }),
        );
    }
    json!({
        "asyncapi": "3.0.0",
        "info": { "title": "kaai", "version": "1", "description": "What the components of kaai say to each other." },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}
