//! Every answer that the router gives in a replica's stead: which stage refused, with which status, in which words.
//!
//! Bodies are `application/problem+json` (RFC 9457). The sentences that v1's router said are kept in `detail`.

use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use proto::id::ReplicaId;
use serde::Serialize;
use tokio::time::Duration;

use crate::{access::Denied, identity::Names};

/// The stage of a request's way at which it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No such path or service.
    Route,
    /// A method that the address is not asked with.
    Method,
    /// A request that is malformed or did not arrive whole.
    Request,
    /// A payload that is too large.
    Size,
    /// No key, or a wrong one.
    Authentication,
    /// The queue: full, or the wait is over.
    Queue,
    /// No replica is ready.
    Capacity,
    /// The replica takes too long.
    Deadline,
    /// The replica broke off or cannot be reached.
    Replica,
    /// The router itself.
    Platform,
}

/// Every stage, in the order of the way.
pub(crate) const STAGES: [Stage; 10] = [
    Stage::Route,
    Stage::Method,
    Stage::Request,
    Stage::Size,
    Stage::Authentication,
    Stage::Queue,
    Stage::Capacity,
    Stage::Deadline,
    Stage::Replica,
    Stage::Platform,
];

/// The header that names the stage of a refusal; `model` when the service's own script failed.
pub(crate) const STAGE_HEADER: &str = "x-kaai-stage";

impl Stage {
    /// Its stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Method => "method",
            Self::Request => "request",
            Self::Size => "size",
            Self::Authentication => "authentication",
            Self::Queue => "queue",
            Self::Capacity => "capacity",
            Self::Deadline => "deadline",
            Self::Replica => "replica",
            Self::Platform => "platform",
        }
    }
}

/// How full a service was when it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// Requests in the queue.
    pub(crate) queued: u32,
    /// Replicas that are ready.
    pub(crate) ready: u32,
    /// Replicas that are coming.
    pub(crate) starting: u32,
    /// Requests that one replica may have.
    pub(crate) concurrency: u32,
    /// How long a request may wait.
    pub(crate) wait: Duration,
}

/// Why a request is not answered by a replica.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No address of a router.
    NoSuchPath,
    /// No route for this service.
    NoSuchService {
        /// The workspace asked for.
        workspace: String,
    },
    /// Not asked with this method; these are.
    Method(&'static str),
    /// A transfer coding other than `chunked`.
    Coding,
    /// The body broke off before its end.
    Incomplete,
    /// The body did not move for this long.
    Stalled(Duration),
    /// The body moved, but was not whole within this time, which is all that a request may take.
    Unfinished(Duration),
    /// The payload is over this many bytes.
    TooLarge(u64),
    /// Not let in.
    Denied(Denied),
    /// The queue is full, or the wait is over.
    Overloaded(Crowd),
    /// No replica is ready.
    NoReplicas(Crowd),
    /// One replica after another could not be connected to.
    Unreachable(ReplicaId),
    /// No answer within this time.
    TimedOut(ReplicaId, Duration),
    /// The connection ended before the answer began.
    Closed(ReplicaId),
    /// What came was not HTTP.
    Garbled(ReplicaId),
    /// The router lacks what it needs.
    Exhausted,
}

/// The body of a refusal.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: String,
    stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    crowd: Option<CrowdFacts>,
    request_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CrowdFacts {
    queued: u32,
    ready_replicas: u32,
    starting_replicas: u32,
    concurrency: u32,
    max_queue_wait_ms: u64,
}

impl Refusal {
    /// Who refused.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::NoSuchPath | Self::NoSuchService { .. } => Stage::Route,
            Self::Method(_) => Stage::Method,
            Self::Coding | Self::Incomplete | Self::Stalled(_) => Stage::Request,
            Self::TooLarge(_) => Stage::Size,
            Self::Denied(_) => Stage::Authentication,
            Self::Overloaded(_) => Stage::Queue,
            Self::NoReplicas(_) => Stage::Capacity,
            Self::TimedOut(..) | Self::Unfinished(_) => Stage::Deadline,
            Self::Unreachable(_) | Self::Closed(_) | Self::Garbled(_) => Stage::Replica,
            Self::Exhausted => Stage::Platform,
        }
    }

    /// The status, v1's where v1 had one.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchPath | Self::NoSuchService { .. } => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Incomplete => StatusCode::BAD_REQUEST,
            Self::Stalled(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            Self::Overloaded(_) | Self::NoReplicas(_) | Self::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable(_) | Self::Closed(_) | Self::Garbled(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut(..) | Self::Unfinished(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::NoSuchPath => "No such address",
            Self::NoSuchService { .. } => "No such service",
            Self::Method(_) => "Method not allowed",
            Self::Coding => "Transfer coding not supported",
            Self::Incomplete => "Incomplete request",
            Self::Stalled(_) => "Request too slow",
            Self::Unfinished(_) => "Scoring timeout",
            Self::TooLarge(_) => "Payload too large",
            Self::Denied(_) => "Not authorized",
            Self::Overloaded(_) => "Too many requests",
            Self::NoReplicas(_) => "No ready replicas",
            Self::Unreachable(_) => "Replica unreachable",
            Self::TimedOut(..) => "Scoring timeout",
            Self::Closed(_) => "Replica closed connection",
            Self::Garbled(_) => "Replica answer unreadable",
            Self::Exhausted => "Router out of resources",
        }
    }

    fn detail(&self, service: &str) -> String {
        match self {
            Self::NoSuchPath => {
                "A service answers at /api/v1/service/<name>/score and describes itself at /api/v1/service/<name>/swagger.json"
                    .to_owned()
            }
            Self::NoSuchService { workspace } => format!("No service {service} in workspace {workspace}"),
            Self::Method(allowed) => format!("This address is asked with {allowed}"),
            Self::Coding => "A body is sent with Content-Length, or with Transfer-Encoding: chunked and nothing else".to_owned(),
            Self::Incomplete => "The request's body ended before it was whole".to_owned(),
            Self::Stalled(limit) => format!("The request's body did not move for {} s", limit.as_secs_f64()),
            Self::Unfinished(limit) => {
                format!("The request's body was not whole within {} ms, the scoring timeout of {service}", limit.as_millis())
            }
            Self::TooLarge(limit) => format!("The payload is over {limit} bytes ({} MB)", limit / (1024 * 1024)),
            Self::Denied(denied) => denied_because(*denied, service),
            Self::Overloaded(_) => format!("Too many requests for service {service} (overloaded)"),
            Self::NoReplicas(_) => format!("No ready replicas for service {service}"),
            Self::Unreachable(replica) => format!("Replica {replica} of service {service} cannot be connected to"),
            Self::TimedOut(replica, limit) => {
                format!("Replica {replica} of service {service} did not answer within {} ms", limit.as_millis())
            }
            Self::Closed(replica) => format!("Replica closed connection before replying: {replica} of service {service}"),
            Self::Garbled(replica) => format!("Replica {replica} of service {service} answered with something that is not HTTP"),
            Self::Exhausted => "The router is out of file descriptors or ports; try again shortly".to_owned(),
        }
    }

    fn replica(&self) -> Option<&str> {
        match self {
            Self::Unreachable(replica)
            | Self::TimedOut(replica, _)
            | Self::Closed(replica)
            | Self::Garbled(replica) => Some(replica.as_str()),
            _ => None,
        }
    }

    fn crowd(&self) -> Option<CrowdFacts> {
        let (Self::Overloaded(crowd) | Self::NoReplicas(crowd)) = self else { return None };
        Some(CrowdFacts {
            queued: crowd.queued,
            ready_replicas: crowd.ready,
            starting_replicas: crowd.starting,
            concurrency: crowd.concurrency,
            max_queue_wait_ms: u64::try_from(crowd.wait.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// The whole answer. `service` is the name asked for, where one was.
    pub(crate) fn answer(&self, service: Option<&str>, names: &Names) -> Response<Bytes> {
        let status = self.status();
        let problem = Problem {
            r#type: format!("urn:kaai:refusal:{}", self.stage().name()),
            title: self.title(),
            status: status.as_u16(),
            detail: self.detail(service.unwrap_or_default()),
            stage: self.stage().name(),
            service,
            replica: self.replica(),
            crowd: self.crowd(),
            request_id: names.text(),
        };
        // A problem is made of texts and numbers, which always have a JSON form.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut answer = Response::new(Bytes::from(body));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(STAGE_HEADER, HeaderValue::from_static(self.stage().name()));
        match self {
            Self::Denied(_) => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Method(allowed) => drop(headers.insert(ALLOW, HeaderValue::from_static(allowed))),
            Self::Overloaded(_) | Self::NoReplicas(_) | Self::Exhausted => {
                drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1")));
            }
            _ => {}
        }
        names.echo(headers);
        answer
    }
}

fn denied_because(denied: Denied, service: &str) -> String {
    match denied {
        Denied::Missing => {
            format!(
                "Service {service} wants a key: send `Authorization: Bearer <key>` (`kaai keys {service}` shows it)"
            )
        }
        Denied::Wrong => {
            format!("The key is not valid for service {service} (`kaai keys {service}` shows the valid ones)")
        }
        Denied::TokensLater => format!(
            "Service {service} uses token authentication, which comes in a later version of kaai; deploy it with keys until then"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd() -> Crowd {
        Crowd { queued: 3, ready: 1, starting: 0, concurrency: 1, wait: Duration::from_millis(500) }
    }

    fn names() -> Names {
        Names { request: HeaderValue::from_static("r-1"), client: Some(HeaderValue::from_static("c-1")) }
    }

    fn body(refusal: &Refusal) -> serde_json::Value {
        serde_json::from_slice(refusal.answer(Some("ridge"), &names()).body()).unwrap()
    }

    #[test]
    fn a_refusal_says_its_stage_in_status_header_and_body() {
        let answer = Refusal::Overloaded(crowd()).answer(Some("ridge"), &names());
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(answer.headers()[STAGE_HEADER], "queue");
        assert_eq!(answer.headers()[RETRY_AFTER], "1");
        assert_eq!(answer.headers()["x-request-id"], "r-1");
        assert_eq!(answer.headers()["x-ms-client-request-id"], "c-1");
        let body = body(&Refusal::Overloaded(crowd()));
        assert_eq!(body["type"], "urn:kaai:refusal:queue");
        assert_eq!(body["detail"], "Too many requests for service ridge (overloaded)");
        assert_eq!(body["service"], "ridge");
        assert_eq!(body["requestId"], "r-1");
        assert_eq!((&body["queued"], &body["maxQueueWaitMs"]), (&3.into(), &500.into()));
    }

    #[test]
    fn v1_sentences_are_kept() {
        let replica: ReplicaId = "ridge-7-a".parse().unwrap();
        assert_eq!(body(&Refusal::NoReplicas(crowd()))["detail"], "No ready replicas for service ridge");
        let closed = body(&Refusal::Closed(replica));
        assert!(
            closed["detail"].as_str().unwrap().starts_with("Replica closed connection before replying"),
            "{closed}"
        );
        assert_eq!(closed["replica"], "ridge-7-a");
    }

    #[test]
    fn a_caller_without_a_key_is_told_how_to_send_one() {
        let answer = Refusal::Denied(Denied::Missing).answer(Some("ridge"), &names());
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers()[WWW_AUTHENTICATE], "Bearer");
        assert!(body(&Refusal::Denied(Denied::Missing))["detail"].as_str().unwrap().contains("Authorization: Bearer"));
    }
}
