//! The JSON Schemas: current, and of one mind with the parser.
//!
//! `keel schema --dir schemas` writes them anew, and so does `UPDATE_EXPECTED=1 cargo test --test schemas`.

use std::path::{Path, PathBuf};

use evenkeel::cli::schema::Kind;
use evenkeel::spec::{Control, is_spec_file, merge, parse};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn schemas_are_current() {
    for kind in Kind::ALL {
        let path = root("schemas").join(kind.file_name());
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            std::fs::write(&path, kind.text().unwrap()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            text == kind.text().unwrap(),
            "{} is not what the types say; run `keel schema --dir schemas`",
            path.display()
        );
    }
}

#[test]
fn schemas_are_of_draft_2020_12_and_describe_every_field() {
    for kind in Kind::ALL {
        let schema: serde_json::Value = serde_json::from_str(&kind.text().unwrap()).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["additionalProperties"], false);
        let mut bare = Vec::new();
        undescribed(&schema, kind.file_name(), &mut bare);
        assert_eq!(bare, Vec::<String>::new(), "fields without a description");
    }
}

/// Collects the properties that have no description.
fn undescribed(schema: &serde_json::Value, path: &str, bare: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            if property["description"].as_str().is_none_or(str::is_empty) {
                bare.push(format!("{path}/{name}"));
            }
        }
    }
    match schema {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| undescribed(value, &format!("{path}/{key}"), bare));
        }
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| undescribed(item, &format!("{path}/{i}"), bare));
        }
        _ => {}
    }
}

#[test]
fn schemas_know_defaults_bounds_and_choices() {
    let schema: serde_json::Value = serde_json::from_str(&Kind::Deployment.text().unwrap()).unwrap();
    let fields = &schema["$defs"];
    assert_eq!(schema["properties"]["version"]["enum"], serde_json::json!(["v1"]));
    assert_eq!(schema["properties"]["prune"]["default"], "auto");
    assert_eq!(fields["ServiceSpec"]["properties"]["stop_grace_period"]["default"], "30s");
    assert_eq!(fields["ServiceSpec"]["required"], serde_json::json!(["image"]));
    assert_eq!(fields["Endpoint"]["properties"]["port"]["minimum"], 1);
    assert_eq!(fields["Endpoint"]["properties"]["port"]["maximum"], 65535);
    assert_eq!(fields["Resources"]["properties"]["blkio_weight"]["maximum"], 1000);
    assert_eq!(fields["PullPolicy"]["oneOf"][1]["const"], "newer");
    assert_eq!(fields["Sandbox"]["properties"]["require"]["items"]["$ref"], "#/$defs/Control");
    let controls: Vec<_> = fields["Control"]["oneOf"].as_array().unwrap().iter().map(|one| &one["const"]).collect();
    assert!(controls.iter().any(|name| **name == Control::Seccomp.to_string()), "{controls:?}");
    assert_eq!(fields["ServiceSpec"]["patternProperties"], serde_json::json!({ "^x-": {} }));
}

#[test]
fn examples_are_valid_and_point_editors_to_a_schema() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root("examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !is_spec_file(&name) {
            continue;
        }
        seen += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let schema = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# yaml-language-server: $schema="))
            .unwrap_or_else(|| panic!("{name} must begin with the modeline of its schema"));
        assert!(root("examples").join(schema).is_file(), "{name} points to {schema}, which does not exist");
        let file = parse(&text);
        assert_eq!(file.problems, [], "{name}");
        let merged = merge(&[(path, file)]);
        assert_eq!(merged.problems, [], "{name}");
        assert!(!merged.deployments.is_empty(), "{name} declares nothing");
    }
    assert!(seen >= 5, "there are {seen} examples");
}
