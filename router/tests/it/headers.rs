//! What the replica and the caller see of each other's headers and addresses.

use std::sync::{Arc, Mutex};

use hyper::{HeaderMap, Request, body::Incoming};
use proto::spec::Auth;
use sha2::{Digest as _, Sha256};

use crate::{
    replica::{Replica, ok},
    world::{SCORE, World, ask, request, route},
};

type Heard = Arc<Mutex<Vec<(String, HeaderMap)>>>;

fn listening() -> (Replica, Heard) {
    let heard = Heard::default();
    let log = heard.clone();
    let replica = Replica::unix("a", move |request: Request<Incoming>| {
        let entry = (format!("{} {}", request.method(), request.uri()), request.headers().clone());
        log.lock().unwrap().push(entry);
        async move {
            let mut answer = ok("done");
            for (name, value) in
                [("connection", "x-private"), ("x-private", "1"), ("keep-alive", "timeout=9"), ("x-kept", "1")]
            {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            answer
        }
    });
    (replica, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_side_sees_what_is_meant_for_it() {
    let (replica, heard) = listening();
    let mut listed = route(vec![replica.endpoint()]);
    listed.auth = Auth::Key;
    listed.key_digests = vec![proto::id::Digest::from_sha256(Sha256::digest("k").into())];
    let world = World::new(listed);
    let mut sent = request("POST", SCORE, "{}");
    for (name, value) in [
        ("authorization", "Bearer k"),
        ("connection", "x-secret"),
        ("x-secret", "1"),
        ("te", "trailers"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-ms-client-request-id", "client-1"),
        ("content-type", "application/json"),
    ] {
        sent.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = ask(world.address(), sent).await;
    assert_eq!(answer.text(), "done");
    let (line, seen) = heard.lock().unwrap().pop().unwrap();
    assert_eq!(line, "POST /score");
    for gone in ["authorization", "connection", "x-secret", "te"] {
        assert!(!seen.contains_key(gone), "{gone}: {seen:?}");
    }
    assert_eq!(seen["host"], "kaai.test");
    assert_eq!(seen["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_eq!(seen["content-type"], "application/json");
    assert_eq!(seen["content-length"], "2");
    assert_eq!(seen["traceparent"].len(), 55);

    assert_eq!(answer.headers["x-request-id"], seen["x-request-id"], "made by the router, told to both");
    assert_eq!(answer.headers["x-ms-client-request-id"], "client-1");
    assert_eq!(answer.headers["x-kept"], "1");
    for gone in ["x-private", "keep-alive"] {
        assert!(!answer.headers.contains_key(gone), "{gone}: {:?}", answer.headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_the_caller_gave_a_request_stay() {
    let (replica, heard) = listening();
    let world = World::new(route(vec![replica.endpoint()]));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    for path in [SCORE, "/nowhere"] {
        let mut sent = request("GET", path, "");
        sent.headers_mut().insert("x-request-id", "mine".parse().unwrap());
        sent.headers_mut().insert("traceparent", trace.parse().unwrap());
        assert_eq!(ask(world.address(), sent).await.headers["x-request-id"], "mine");
    }
    let (_, seen) = heard.lock().unwrap().pop().unwrap();
    assert_eq!((&seen["x-request-id"], &seen["traceparent"]), (&"mine".parse().unwrap(), &trace.parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_of_a_service_become_those_of_the_model_server() {
    let (replica, heard) = listening();
    let world = World::new(route(vec![replica.endpoint()]));
    let mut elsewhere = route(vec![replica.endpoint()]);
    elsewhere.workspace = "team-a".parse().unwrap();
    elsewhere.service = "churn".parse().unwrap();
    world.routes.put(&elsewhere, 2);
    for path in [
        "/api/v1/service/ridge",
        "/api/v1/service/ridge/",
        "/api/v1/service/ridge/score?data=%5B1%5D&a=b",
        "/api/v1/service/ridge/swagger.json?version=3",
        "/api/v1/workspace/team-a/service/churn/score",
        "/api/v1/workspace/default/service/ridge/score",
    ] {
        assert_eq!(world.get(path).await.status, 200, "{path}");
    }
    let asked: Vec<_> = heard.lock().unwrap().iter().map(|(line, _)| line.clone()).collect();
    let expected =
        ["GET /", "GET /", "GET /score?data=%5B1%5D&a=b", "GET /swagger.json?version=3", "GET /score", "GET /score"];
    assert_eq!(asked, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_service_is_answered_in_words() {
    let (replica, _) = listening();
    let world = World::new(route(vec![replica.endpoint()]));
    assert!(world.get("/").await.text().contains("/api/v1/service/<name>/score"));
    let detail = world.get("/api/v1/service/churn/score").await.refusal(404, "route");
    assert_eq!(detail, "No service churn in workspace default");
    assert!(world.get("/score").await.refusal(404, "route").contains("/api/v1/service/<name>/score"));
    let wrong = ask(world.address(), request("POST", "/api/v1/service/ridge/swagger.json", "")).await;
    assert_eq!(wrong.refusal(405, "method"), "This address is asked with GET, OPTIONS");
    assert_eq!(wrong.headers["allow"], "GET, OPTIONS");
    world.routes.remove(&"default".parse().unwrap(), &"ridge".parse().unwrap(), 9);
    world.get(SCORE).await.refusal(404, "route");
    assert_eq!(replica.seen.requests(), 0);
}
