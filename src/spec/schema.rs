//! The JSON Schemas of the two kinds of documents.
//!
//! They serve editors (`keel schema`, `schemas/`) and drive the structural check of every file, so what an
//! editor accepts and what `keel` accepts can't drift apart.

use std::sync::LazyLock;

use schemars::Schema;
use schemars::generate::SchemaSettings;
use serde_json::{Value as Json, json};

use super::{DeploymentSpec, ServiceSpec};

/// What names of deployments, services, endpoints and volumes match (RFC 1035, section 2.3.1, and digits first as
/// RFC 1123 allows).
pub(super) const DNS_LABEL: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

/// Second names of fields of a service: the name as the published format also writes it, and the field.
pub(super) const SERVICE_ALIASES: &[(&str, &str)] = &[("cap_add", "capabilities"), ("wasm_http", "wasm")];

/// JSON Schema (2020-12) of a document with `services:`.
pub fn deployment_schema() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<DeploymentSpec>();
    finish(&mut schema, "/$defs/ServiceSpec");
    schema
}

/// JSON Schema (2020-12) of a document with `service:`.
pub fn service_schema() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<ServiceSpec>();
    if let Some(properties) = schema.pointer_mut("/properties").and_then(Json::as_object_mut) {
        let own = [
            ("version", json!({ "description": "Version of the format; `v1`.", "type": "string", "enum": ["v1"] })),
            (
                "service",
                json!({ "description": "Name of the service: a DNS label.", "type": "string", "pattern": DNS_LABEL }),
            ),
            (
                "deployment",
                json!({
                    "description": "Name of the deployment that it joins, or makes: a DNS label.",
                    "type": "string",
                    "pattern": DNS_LABEL
                }),
            ),
        ];
        properties.extend(own.map(|(name, schema)| (name.to_owned(), schema)));
    }
    schema.insert("required".into(), json!(["service", "deployment", "image"]));
    schema.insert("title".into(), json!("Service"));
    schema.insert("description".into(), json!("One service in a document of its own."));
    finish(&mut schema, "");
    schema
}

/// Adds what the types can't say: second names, and `x-` keys for users.
fn finish(schema: &mut Schema, service: &str) {
    if let Some(properties) = schema.pointer_mut(&format!("{service}/properties")).and_then(Json::as_object_mut) {
        for (alias, field) in SERVICE_ALIASES {
            if let Some(mut property) = properties.get(*field).cloned() {
                property["description"] = json!(format!("The same as `{field}`."));
                properties.insert((*alias).to_owned(), property);
            }
        }
    }
    if let Some(map) = schema.as_object_mut() {
        allow_user_keys_in(map);
        map.values_mut().for_each(describe_choices);
    }
}

/// Describes the key that chooses one of several kinds by what the kind is, and goes on below.
fn describe_choices(schema: &mut Json) {
    if let Some(kind) = schema["description"].as_str().map(str::to_owned)
        && let Some(properties) = schema.get_mut("properties").and_then(Json::as_object_mut)
    {
        for property in properties.values_mut().filter(|property| property.get("description").is_none()) {
            if let Some(chosen) = property["const"].as_str() {
                property["description"] = json!(format!("`{chosen}`: {kind}"));
            }
        }
    }
    match schema {
        Json::Object(map) => map.values_mut().for_each(describe_choices),
        Json::Array(items) => items.iter_mut().for_each(describe_choices),
        _ => {}
    }
}

/// Lets keys that begin with `x-` pass wherever the known keys are a closed set.
fn allow_user_keys(schema: &mut Json) {
    match schema {
        Json::Object(map) => allow_user_keys_in(map),
        Json::Array(items) => items.iter_mut().for_each(allow_user_keys),
        _ => {}
    }
}

fn allow_user_keys_in(map: &mut serde_json::Map<String, Json>) {
    if map.get("additionalProperties") == Some(&Json::Bool(false)) {
        map.insert("patternProperties".to_owned(), json!({ "^x-": {} }));
    }
    map.values_mut().for_each(allow_user_keys);
}

/// The schemas as plain JSON, made once.
pub(super) struct Schemas {
    pub(super) deployment: Json,
    pub(super) service: Json,
}

pub(super) static SCHEMAS: LazyLock<Schemas> =
    LazyLock::new(|| Schemas { deployment: deployment_schema().to_value(), service: service_schema().to_value() });

/// Smallest and largest whole number that a schema takes.
pub(super) fn bounds(schema: &Json) -> (i128, i128) {
    let (least, most) = match schema["format"].as_str() {
        Some("uint8") => (0, i128::from(u8::MAX)),
        Some("uint16") => (0, i128::from(u16::MAX)),
        Some("uint32") => (0, i128::from(u32::MAX)),
        Some("uint64" | "uint") => (0, i128::from(u64::MAX)),
        Some("int32") => (i128::from(i32::MIN), i128::from(i32::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    };
    let bound = |name: &str| schema[name].as_i64().map(i128::from);
    (bound("minimum").unwrap_or(least).max(least), bound("maximum").unwrap_or(most).min(most))
}
