//! All samples in the exact shape of Azure ML v1 deploy unchanged and answer as v1's own server did.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tests::{Kaai, http::Ask, project::copy};

use crate::shared;

struct Samples(PathBuf);

impl Samples {
    fn find() -> Option<Self> {
        let folder = tests::root().parent().unwrap().join("shared/azureml-v1-samples");
        folder.is_dir().then_some(Self(folder))
    }

    fn json(&self, sample: &str, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.0.join(sample).join(file)).unwrap()).unwrap()
    }

    /// Copies a sample, since tests may leave files beside it, and deploys it.
    fn deploy(&self, kaai: &Kaai, sample: &str, more: &[&str]) -> tests::Ran {
        let copied = kaai.home().join("samples").join(sample);
        copy(&self.0.join(sample), &copied);
        let mut args = vec!["deploy", copied.to_str().unwrap(), "--output", "json"];
        args.extend(more);
        kaai.run(&args)
    }
}

async fn ask_sample(kaai: &Kaai, samples: &Samples, sample: &str, headers: &[(&str, &str)]) -> Value {
    let body = fs::read(samples.0.join(sample).join("sample-request.json")).unwrap();
    let mut ask = Ask::post(kaai.url(sample, "score"), body);
    for (name, value) in headers {
        ask = ask.header(name, value);
    }
    let answer = ask.send().await;
    let expected = samples.json(sample, "expected-response.json");
    assert_eq!(json!(answer.status.as_u16()), expected["status"], "{sample}: {:?}", answer.body);
    for (name, value) in expected["headers"].as_object().into_iter().flatten() {
        assert_eq!(json!(answer.header(name)), *value, "{sample}: {name}");
    }
    answer.json()
}

#[tokio::test]
async fn every_sample_deploys_unchanged_and_answers_as_v1_did() {
    let Some(samples) = Samples::find() else {
        runtime::testing::skip("every_sample_deploys_unchanged", "../shared/azureml-v1-samples is not there");
        return;
    };
    let kaai = shared();

    samples.deploy(kaai, "ridge-diabetes", &["--model", "ridge=models/sklearn_regression_model.pkl"]).good();
    let key = format!("Bearer {}", kaai.key("ridge-diabetes"));
    let said = ask_sample(kaai, &samples, "ridge-diabetes", &[("authorization", &key)]).await;
    assert_eq!(said, samples.json("ridge-diabetes", "expected-response.json")["body"]);
    assert_eq!(Ask::post(kaai.url("ridge-diabetes", "score"), "{}").send().await.status, 401);
    let swagger = Ask::get(kaai.url("ridge-diabetes", "swagger.json")).header("authorization", &key).send().await;
    assert_eq!(swagger.status, 200);
    assert!(swagger.json()["paths"].as_object().is_some_and(|paths| !paths.is_empty()), "{:?}", swagger.body);

    let models = [
        "--model",
        "offset=azureml-models/offset/1/offset.json",
        "--model",
        "scale=azureml-models/scale/2/coefficients",
    ];
    samples.deploy(kaai, "multi-model", &models).good();
    let said = ask_sample(kaai, &samples, "multi-model", &[]).await;
    assert_eq!(said, samples.json("multi-model", "expected-response.json")["body"]);
    assert_eq!(kaai.json(&["status", "multi-model"])[0]["service"]["ready"], 2);

    samples.deploy(kaai, "onnx-mnist-like", &["--model", "bands=models/model.onnx"]).good();
    let headers =
        [("authorization", "Bearer sample-secondary-key-00000000000"), ("x-ms-client-request-id", "sample-1")];
    let said = ask_sample(kaai, &samples, "onnx-mnist-like", &headers).await;
    assert_eq!(said, samples.json("onnx-mnist-like", "expected-response.json")["body"]);

    let begun = tokio::time::Instant::now();
    samples.deploy(kaai, "slow-init", &[]).good();
    assert!(begun.elapsed().as_secs() >= 8, "it was ready before init() was over");
    let said = ask_sample(kaai, &samples, "slow-init", &[]).await;
    assert_eq!(said, samples.json("slow-init", "expected-response.json")["body"]);

    let deployed = samples.deploy(kaai, "custom-docker-steps", &[]).good().json();
    assert!(deployed["warnings"].to_string().contains("docker steps"), "{deployed}");
    let said = Ask::post(kaai.url("custom-docker-steps", "score"), "{}").send().await.json();
    assert_eq!(said, samples.json("custom-docker-steps", "expected-response.json")["bodyWhenTheStepsDidNotRun"]);
    raw_http(kaai, &samples).await;
}

async fn raw_http(kaai: &Kaai, samples: &Samples) {
    samples.deploy(kaai, "rawhttp-image", &[]).good();
    let image = fs::read(samples.0.join("rawhttp-image/sample.png")).unwrap();
    let url = kaai.url("rawhttp-image", "score");
    let ask = Ask::post(&url, image).header("content-type", "image/png").key(&kaai.key("rawhttp-image"));
    let answer = ask.send().await;
    let expected = samples.json("rawhttp-image", "expected-response.json");
    assert_eq!((answer.status.as_u16(), answer.json()), (200, expected["body"].clone()));
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let thumbnail = Ask::post(format!("{url}?as=png"), fs::read(samples.0.join("rawhttp-image/sample.png")).unwrap())
        .header("content-type", "image/png")
        .key(&kaai.key("rawhttp-image"))
        .send()
        .await;
    assert_eq!(thumbnail.header("content-type"), "image/png");
    assert!(thumbnail.body.starts_with(b"\x89PNG"), "a binary answer comes through as it is");
}

#[tokio::test]
async fn the_sample_that_breaks_in_every_way_is_answered_as_v1s_router_did() {
    let Some(samples) = Samples::find() else {
        runtime::testing::skip("the_sample_that_breaks_in_every_way", "../shared/azureml-v1-samples is not there");
        return;
    };
    let kaai = shared();
    samples.deploy(kaai, "crashy-run", &[]).good();
    let url = kaai.url("crashy-run", "score");
    let expected = samples.json("crashy-run", "expected-response.json");
    for how in ["ok", "raise", "not-json", "none", "string"] {
        let answer = Ask::post(&url, json!({ "how": how }).to_string()).send().await;
        let (alone, routed) = (&expected["fromReplica"][how], &expected["behindRouter"][how]["status"]);
        let status = if routed.is_null() { &alone["status"] } else { routed };
        assert_eq!((json!(answer.status.as_u16()), answer.json()), (status.clone(), alone["body"].clone()), "{how}");
        assert_eq!(json!(answer.header("x-ms-run-function-failed")), alone["x-ms-run-function-failed"], "{how}");
    }
    let answer = Ask::post(&url, r#"{"how": "exit"}"#).send().await;
    assert_eq!(answer.status, 502, "{:?}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(
        answer.json()["detail"].as_str().unwrap().contains("Replica closed connection before replying"),
        "{:?}",
        answer.body
    );
}

#[tokio::test]
async fn the_sample_whose_init_raises_fails_with_its_own_words() {
    let Some(samples) = Samples::find() else {
        runtime::testing::skip("the_sample_whose_init_raises", "../shared/azureml-v1-samples is not there");
        return;
    };
    let kaai = shared();
    let ran = samples.deploy(kaai, "broken-init", &[]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let error = &ran.json()["error"];
    assert!(
        error["cause"].as_str().unwrap().contains("the weights file is damaged: checksum 41 instead of 42"),
        "{error}"
    );
    assert_eq!(error["failure"]["stage"], "starting");
    let log = kaai.run(&["logs", "broken-init"]).good().stdout;
    for line in samples.json("broken-init", "expected-response.json")["logContains"].as_array().unwrap() {
        assert!(log.contains(line.as_str().unwrap()), "{line} is not in\n{log}");
    }
}

#[test]
fn the_sample_of_a_run_would_be_sent_as_v1_sent_it() {
    let Some(samples) = Samples::find() else {
        runtime::testing::skip("the_sample_of_a_run", "../shared/azureml-v1-samples is not there");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    copy(&samples.0.join("train-run"), folder.path());
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/raw.csv"), "1,2").unwrap();
    let ran = tests::Ran::new(
        std::process::Command::new(tests::binary("kaai"))
            .args(["package", "--list", "--output", "json"])
            .arg(folder.path()),
    );
    assert_eq!(ran.good().json(), samples.json("train-run", "expected-run.json")["uploadedFiles"]);
}
