//! The examples that the README speaks of work as their own pages say.

use std::fs;

use tests::{http::Ask, root};

use crate::shared;

#[tokio::test]
async fn the_example_of_a_raw_binary_body_answers() {
    let kaai = shared();
    let folder = root().join("examples/thumbnail");
    kaai.run(&["deploy", folder.to_str().unwrap()]).good();
    let image = fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "png"));
    let ask = Ask::post(kaai.url("thumbnail", "score"), fs::read(image.unwrap()).unwrap())
        .header("content-type", "image/png");
    let keyed = kaai.json(&["status", "thumbnail"])[0]["service"]["active"]["spec"]["auth"] != "none";
    let answer = if keyed { ask.key(&kaai.key("thumbnail")) } else { ask }.send().await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
}

#[test]
fn the_examples_of_json_services_answer() {
    let kaai = shared();
    for example in ["ridge-diabetes", "two-models"] {
        let folder = root().join("examples").join(example);
        // A name of its own: the sample of Azure ML v1 may be deployed here as well.
        let name = format!("example-{example}");
        kaai.run(&["deploy", folder.to_str().unwrap(), "--name", &name]).good();
        let said = kaai.json(&["invoke", &name, "--file", folder.join("sample-request.json").to_str().unwrap()]);
        assert_eq!(said["status"], 200, "{said}");
    }
}
