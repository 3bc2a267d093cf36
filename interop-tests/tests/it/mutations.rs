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
        assert!(page.contains(&format!("| {name} | {breaks} | {found_by} | `")), "{name} is not on the page");
    }
    let columns = page.lines().filter_map(|line| line.strip_prefix("| ")).map(|row| row.split(" | "));
    let rows =
        columns.filter(|columns| columns.clone().count() == 5).filter_map(|mut columns| columns.next());
    let rows: Vec<_> = rows.filter(|name| !matches!(*name, "mutation" | "---")).collect();
    assert_eq!(rows.len(), names.len(), "the page has a row for each mutation and no other");
    assert!(rows.iter().all(|name| names.contains(name)), "the page has a row of no mutation");
}
