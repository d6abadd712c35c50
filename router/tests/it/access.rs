//! Who is let in, and what a browser's question gets.

use hyper::Request;
use proto::{id::Digest, spec::Auth};
use sha2::{Digest as _, Sha256};

use crate::{
    replica::{Replica, ok},
    world::{SCORE, World, ask, request, route},
};

fn digest(key: &str) -> Digest {
    Digest::from_sha256(Sha256::digest(key).into())
}

fn with_key(key: &str) -> Request<http_body_util::Full<hyper::body::Bytes>> {
    let mut request = request("POST", SCORE, "{}");
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_valid_key_gets_to_a_replica() {
    let replica = Replica::unix("a", |_| async { ok("in") });
    let mut listed = route(vec![replica.endpoint()]);
    (listed.auth, listed.key_digests) = (Auth::Key, vec![digest("one"), digest("two")]);
    let world = World::new(listed.clone());

    let missing = world.post("{}").await;
    assert!(missing.refusal(401, "authentication").contains("Authorization: Bearer"));
    assert_eq!(missing.headers["www-authenticate"], "Bearer");
    let wrong = ask(world.address(), with_key("three")).await;
    assert!(wrong.refusal(401, "authentication").contains("not valid"));
    for path in ["/api/v1/service/ridge", "/api/v1/service/ridge/swagger.json"] {
        world.get(path).await.refusal(401, "authentication");
    }
    assert_eq!(replica.seen.requests(), 0);

    for key in ["one", "two"] {
        assert_eq!(ask(world.address(), with_key(key)).await.text(), "in");
    }
    listed.key_digests = vec![digest("three"), digest("two")];
    world.routes.put(&listed, 2);
    ask(world.address(), with_key("one")).await.refusal(401, "authentication");
    assert_eq!(ask(world.address(), with_key("two")).await.text(), "in");
    assert_eq!(ask(world.address(), with_key("three")).await.text(), "in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_with_tokens_takes_its_keys_until_tokens_come() {
    let replica = Replica::unix("a", |_| async { ok("in") });
    let mut listed = route(vec![replica.endpoint()]);
    listed.auth = Auth::Token;
    let world = World::new(listed.clone());
    let refused = ask(world.address(), with_key("one")).await;
    assert!(refused.refusal(401, "authentication").contains("later version"));
    listed.key_digests = vec![digest("one")];
    world.routes.put(&listed, 2);
    assert_eq!(ask(world.address(), with_key("one")).await.text(), "in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browsers_preflight_gets_to_the_model_server_without_a_key() {
    let replica = Replica::unix("a", |request: Request<_>| async move {
        let mut answer = ok("");
        answer.headers_mut().insert("access-control-allow-origin", request.headers()["origin"].clone());
        answer
    });
    let mut listed = route(vec![replica.endpoint()]);
    (listed.auth, listed.key_digests) = (Auth::Key, vec![digest("one")]);
    let world = World::new(listed);
    let mut preflight = request("OPTIONS", SCORE, "");
    preflight.headers_mut().insert("origin", "https://app.example".parse().unwrap());
    preflight.headers_mut().insert("access-control-request-method", "POST".parse().unwrap());
    let answer = ask(world.address(), preflight).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
    ask(world.address(), request("OPTIONS", SCORE, "")).await.refusal(401, "authentication");
    assert_eq!(replica.seen.requests(), 1);
}
