//! The list of mutations fits the tree, and the page about them names each: see
//! `docs/mutations.md`.

use crate::threats::{root, texts};
use std::collections::BTreeSet;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_mutation_can_be_made_and_is_documented() {
    let list: toml::Table = read("interop-tests/mutations/mutations.toml").parse().unwrap();
    let (page, texts) = (read("docs/mutations.md"), texts());
    let found = page.split("\n## ").find(|section| section.starts_with("What found them")).unwrap();
    let mut names = BTreeSet::new();
    for mutation in list["mutation"].as_array().unwrap() {
        let text = |key: &str| mutation.get(key).map(|value| value.as_str().unwrap());
        let [Some(name), Some(breaks), Some(file), Some(find), Some(replace)] =
            ["name", "breaks", "file", "find", "replace"].map(text)
        else {
            panic!("something is missing: {mutation}")
        };
        assert!(names.insert(name), "{name} stands twice");
        assert_eq!(read(file).matches(find).count(), 1, "{name}: how often `find` stands in {file}");
        assert_ne!(find, replace, "{name} changes nothing");
        assert!(!mutation["finds"].as_array().unwrap().is_empty(), "{name}: what must be reported?");
        let found_by = match (text("simulate"), text("test")) {
            (Some(_), None) => "simulation".to_owned(),
            (None, Some(test)) => {
                let (package, test) = test.split_once(' ').unwrap();
                let source = match package {
                    "chancery-interop-tests" => "interop",
                    package => package.strip_prefix("chancery-").unwrap_or(package),
                };
                let function = test.rsplit("::").next().unwrap();
                assert!(
                    texts[source].contains(&format!("fn {function}(")),
                    "{name}: {package} has no {test}"
                );
                format!("{package} `{test}`")
            }
            _ => panic!("{name} has one harness, `simulate` or `test`"),
        };
        let row = format!("| {name} | {breaks} | {found_by} | `");
        let rest = found.lines().find_map(|line| line.strip_prefix(&*row));
        let (reported, after) = rest.and_then(|rest| rest.split_once("` | ")).expect(name);
        assert!(!reported.is_empty() && (after == "its test |" || after.contains(" run")), "{name}: {after}");
    }
    let rows = found.lines().filter(|line| line.starts_with("| ")).skip(2).count();
    assert_eq!(rows, names.len(), "the page has a row for each mutation and no other");
}
