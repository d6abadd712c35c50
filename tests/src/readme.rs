//! The commands of a README, so that what is documented is what is tested.

use crate::root;

/// The blocks of shell commands in a file of the repository, in order.
///
/// # Panics
///
/// When the file is not there.
pub fn shell_blocks(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// The block of the README that holds a text.
///
/// # Panics
///
/// When there is none.
pub fn block_with(part: &str) -> String {
    shell_blocks("README.md")
        .into_iter()
        .find(|block| block.contains(part))
        .unwrap_or_else(|| panic!("the README has no {part}"))
}

/// How the README starts a component alone, word by word, with another folder in place of `/srv/kaai` and another address of the router.
///
/// # Panics
///
/// When the README does not say it.
pub fn started_alone(program: &str, folder: &str, router: &str) -> Vec<String> {
    let block = block_with("kaai-packager");
    let line = block.lines().find(|line| line.split(' ').next() == Some(program));
    let line = line.unwrap_or_else(|| panic!("the README does not say how {program} is started"));
    line.split_whitespace().map(|word| word.replace("/srv/kaai", folder).replace("127.0.0.1:8080", router)).collect()
}
