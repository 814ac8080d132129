//! Which fields of a declaration change, with secret values masked. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::secrets;
use crate::controller::DeploymentPreview;

/// What is shown instead of a secret value.
const MASK: &str = "***";

/// One field that changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldChange {
    /// `services.web.scale.replicas`.
    pub path: String,
    /// What is declared now; absent where nothing is.
    pub old: Option<Value>,
    /// What would be declared; absent where nothing would be.
    pub new: Option<Value>,
    /// Whether the values are secret and not shown.
    pub masked: bool,
}

impl std::fmt::Display for FieldChange {
    /// `path: old -> new`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {}", self.path, shown(self.old.as_ref()), shown(self.new.as_ref()))?;
        if self.masked && self.old.is_some() && self.new.is_some() {
            f.write_str(" (changed)")?;
        }
        Ok(())
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => "(none)".to_owned(),
        Some(Value::String(text)) if is_plain(text) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Whether a text reads as itself without quotes, and as nothing else: `1` and `true` as texts keep theirs.
fn is_plain(text: &str) -> bool {
    text.trim() == text
        && !text.chars().any(char::is_control)
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_err()
        && !text.is_empty()
}

/// The fields that applying changes, by path.
pub fn changes(preview: &DeploymentPreview) -> Vec<FieldChange> {
    diff(preview.old.as_ref(), preview.new.as_ref())
}

/// The leaves that differ between two values.
pub fn diff(old: Option<&Value>, new: Option<&Value>) -> Vec<FieldChange> {
    let mut commands = BTreeSet::new();
    [old, new].into_iter().flatten().for_each(|value| secret_commands(value, &mut Path::new(), &mut commands));
    let (old, new) = (leaves(old), leaves(new));
    let paths: BTreeSet<&Path> = old.keys().chain(new.keys()).collect();
    paths
        .into_iter()
        .filter(|path| old.get(*path) != new.get(*path))
        .map(|path| change(path, old.get(path), new.get(path), &commands))
        .collect()
}

fn change(path: &Path, old: Option<&Value>, new: Option<&Value>, commands: &BTreeSet<Path>) -> FieldChange {
    let in_command = path.split_last().is_some_and(|(word, of)| is_words(word) && commands.contains(of));
    let masked = in_command || [old, new].into_iter().flatten().any(|value| is_secret(path, value));
    let show =
        |value: Option<&Value>| value.map(|value| if masked { Value::String(MASK.to_owned()) } else { value.clone() });
    FieldChange { path: path_text(path), old: show(old), new: show(new), masked }
}

/// Steps from the root to a leaf.
type Path = Vec<Part>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Key(String),
    Index(usize),
}

fn path_text(path: &Path) -> String {
    let mut text = String::new();
    for part in path {
        match part {
            Part::Key(key) if text.is_empty() => text.push_str(key),
            Part::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Part::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Scalars, empty collections and lists of scalars (a command is one thing) by path.
fn leaves(value: Option<&Value>) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    if let Some(value) = value {
        collect(value, &mut Vec::new(), &mut found);
    }
    found
}

fn collect(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
    let nested = |value: &Value| matches!(value, Value::Object(_) | Value::Array(_));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                path.push(Part::Key(key.clone()));
                collect(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) if items.iter().any(nested) => {
            for (index, value) in items.iter().enumerate() {
                path.push(Part::Index(index));
                collect(value, path, found);
                path.pop();
            }
        }
        leaf => {
            found.insert(path.clone(), leaf.clone());
        }
    }
}

/// Whether this is one of the two lists of a command's words.
fn is_words(part: &Part) -> bool {
    matches!(part, Part::Key(key) if matches!(key.as_str(), "entrypoint" | "args"))
}

/// The commands in a value, by path, that are given a secret by their two lists of words together.
fn secret_commands(value: &Value, path: &mut Path, found: &mut BTreeSet<Path>) {
    let mut nested = |part: Part, value: &Value| {
        path.push(part);
        secret_commands(value, path, found);
        path.pop();
    };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| nested(Part::Key(key.clone()), value));
            if secrets::are_across(fields) {
                found.insert(path.clone());
            }
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| nested(Part::Index(index), value)),
        _ => {}
    }
}

/// What is planned, with the secrets of steps before a start masked: those are as they are declared.
pub fn masked_steps(mut planned: Value) -> Value {
    mask_steps(&mut planned);
    planned
}

fn mask_steps(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match (key.as_str(), field.is_object()) {
                    ("step", true) => *field = masked(field.take()),
                    _ => mask_steps(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask_steps),
        _ => {}
    }
}

/// The value with its secrets masked, wherever in it they are.
pub fn masked(mut value: Value) -> Value {
    mask(&mut value, &mut Path::new());
    value
}

fn mask(value: &mut Value, path: &mut Path) {
    match value {
        Value::Object(fields) => {
            let across = secrets::are_across(fields);
            for (key, field) in fields {
                path.push(Part::Key(key.clone()));
                match across && path.last().is_some_and(is_words) {
                    true => *field = Value::String(MASK.to_owned()),
                    false => mask(field, path),
                }
                path.pop();
            }
        }
        value if is_secret(path, value) => *value = Value::String(MASK.to_owned()),
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, path)),
        _ => {}
    }
}

/// Whether a value must not be shown: its name says so, or there is a secret in it.
fn is_secret(path: &Path, value: &Value) -> bool {
    let keys: Vec<&str> =
        path.iter().filter_map(|part| if let Part::Key(key) = part { Some(key.as_str()) } else { None }).collect();
    let name = keys.last().map(|key| key.to_uppercase()).unwrap_or_default();
    let variable = keys.iter().rev().nth(1).is_some_and(|parent| *parent == "env");
    secrets::is_named(&name) || (variable && secrets::is_named_variable(&name)) || secrets::are_in(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::Action;
    use crate::spec::{RuntimeKind, ServiceSpec};
    use crate::state::{InstanceId, SourceRef};

    fn lines(old: Value, new: Value) -> Vec<String> {
        let present = |value: &Value| (!value.is_null()).then(|| value.clone());
        diff(present(&old).as_ref(), present(&new).as_ref()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_declarations_do_not_differ() {
        let value = json!({"services": {"web": {"scale": {"replicas": 3}, "env": {"TOKEN": "x"}}}});
        assert_eq!(lines(value.clone(), value), Vec::<String>::new());
    }

    #[test]
    fn changed_added_and_removed_fields_are_told_by_path() {
        let old = json!({"services": {"web": {"scale": {"replicas": 3}, "user": "app"}}});
        let new = json!({"services": {"web": {"scale": {"replicas": 5}, "hostname": "w"}}});
        assert_eq!(
            lines(old, new),
            [
                "services.web.hostname: (none) -> w",
                "services.web.scale.replicas: 3 -> 5",
                "services.web.user: app -> (none)"
            ]
        );
    }

    #[test]
    fn a_command_is_one_field_and_lists_of_objects_are_told_by_item() {
        let old = json!({"args": ["a", "b"], "endpoints": [{"port": 80}, {"port": 90}]});
        let new = json!({"args": ["a"], "endpoints": [{"port": 80}, {"port": 91}]});
        assert_eq!(lines(old, new), [r#"args: ["a","b"] -> ["a"]"#, "endpoints[1].port: 90 -> 91"]);
    }

    #[test]
    fn a_number_and_its_text_are_different() {
        assert_eq!(lines(json!({"env": {"A": 1}}), json!({"env": {"A": "1"}})), ["env.A: 1 -> \"1\""]);
        assert_eq!(lines(json!({"env": {"A": ""}}), json!({"env": {"A": " x"}})), [r#"env.A: "" -> " x""#]);
    }

    #[test]
    fn secrets_are_masked_and_their_change_is_told() {
        let old = json!({"env": {"API_TOKEN": "one", "db_password": "two", "GONE_SECRET": "x", "PLAIN": "a", "SSH_KEY": "k"}});
        let new =
            json!({"env": {"API_TOKEN": "three", "db_password": "two", "PLAIN": "b", "SSH_KEY": "l", "REF": "$S:db"}});
        assert_eq!(
            lines(old, new),
            [
                "env.API_TOKEN: *** -> *** (changed)",
                "env.GONE_SECRET: *** -> (none)",
                "env.PLAIN: a -> b",
                "env.REF: (none) -> ***",
                "env.SSH_KEY: *** -> *** (changed)",
            ]
        );
    }

    #[test]
    fn secrets_inside_of_commands_addresses_and_headers_are_masked() {
        for secret in [
            "wget http://mirror/x && curl https://u:hunter2@h/",
            "http://a:1,https://u:hunter6@b",
            "postgres://app:s3,cret@db/x",
            "postgres://app:s3'cret@db/x",
            "--api-key=hunter3",
            "https://h/?api_key=hunter4",
            "curl -H 'Authorization: Bearer hunter5' https://h/",
            "curl -H X-Api-Key:hunter7 https://h/",
            "AWS_SECRET_ACCESS_KEY=hunter8 run",
            "DJANGO_SECRET_KEY=hunter1 ./run",
            "--secret-key=hunter2",
            r#"{"password": "hunter3", "a": 1}"#,
            r#"{"user":"u","api_key":"hunter4"}"#,
            "--private-key=hunter5",
            "PGPASSWORD='hunter2' psql",
            "mysql --password=\"hunter1\" x",
            "--api-key=\"hunter4\"",
            "Password = hunter6",
            "docker run -e DB_PASS=hunter7",
            "echo '-----BEGIN RSA PRIVATE KEY-----'",
            "curl -H 'X: Bearer abcdefgh'",
            "curl -u me:hunter1 h",
            "curl --user me:hunter2 h",
            "curl --proxy-user=me:hunter2 h",
            "curl -ume:hunter3 h",
            "curl -sSu me:hunter4 h",
            "curl -U me:hunter5 h",
            "redis-server --requirepass hunter3",
            "x --adminPass hunter4",
            "exec /usr/bin/mysql -u root -phunter5 db",
            "sshpass -p hunter6 ssh h",
            "mongosh -u a -p hunter7",
            "redis-cli -h db -a hunter8 ping",
            "/usr/bin/valkey-cli -a hunter1",
            "docker login -u x -p hunter2",
            "exec podman login -phunter3 quay.io",
            "helm registry login -p hunter4 h",
            "curl -u :1234 h",
            "x --credentials hunter5",
            "x --password\\\nhunter6",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        ] {
            assert_eq!(lines(json!({"args": [secret]}), Value::Null), ["args: *** -> (none)"], "{secret}");
        }
        for plain in [
            "docker run --user 1000:1000",
            "docker run --user=1000:1000",
            "docker run -u1000:1000",
            "ssh -p 22 mysql",
            "docker run -p 80:80 login",
            "docker exec x grep -a redis-cli",
            "redis-cli -p 6379",
            "http://a:1/b@c",
            "http://a:1 mail u:v@w",
            "keyboard: de",
            "image: a:1",
            "monkey=1",
            "https://user@h/",
        ] {
            assert_eq!(lines(json!({"user": plain}), Value::Null), [format!("user: {plain} -> (none)")]);
        }
    }

    #[test]
    fn a_secret_that_is_given_across_the_two_lists_of_a_command_is_masked() {
        for (entrypoint, args) in [
            (json!(["mysql", "-u", "root"]), json!(["-phunter1", "db"])),
            (json!(["app", "--password"]), json!(["hunter2"])),
            (json!(["curl", "-u"]), json!(["me:hunter3", "h"])),
            (json!("redis-cli"), json!(["-a", "hunter4"])),
        ] {
            let command = json!({"services": [{"command": {"entrypoint": entrypoint, "args": args}}]});
            let none = json!({"services": [{"command": {"entrypoint": ["sh"], "args": ["x"]}}]});
            let path = "services[0].command";
            let both = |change: &str| [format!("{path}.args: {change}"), format!("{path}.entrypoint: {change}")];
            assert_eq!(lines(Value::Null, command.clone()), both("(none) -> ***"));
            assert_eq!(lines(command.clone(), none), both("*** -> *** (changed)"));
            let shown = json!({"services": [{"command": {"entrypoint": MASK, "args": MASK}}]});
            assert_eq!(masked(command), shown);
        }
        let plain = json!({"command": {"entrypoint": ["app", "--password-file"], "args": ["/run/x"]}});
        assert_eq!(masked(plain.clone()), plain);
    }

    #[test]
    fn secrets_of_planned_steps_are_masked_and_what_is_planned_is_shown() {
        let spec: ServiceSpec = serde_yaml::from_str(
            "image: { name: host }\ninit: { steps: [{ id: a, uses: init.run, with: { command: migrate --password hunter1 } }] }",
        )
        .unwrap();
        let action = Action::Init {
            runtime: RuntimeKind::Sandbox,
            id: InstanceId {
                deployment: "demo".into(),
                service: "web".into(),
                slot: 0,
                revision: "v1-0123456789abcdef".parse().unwrap(),
                attempt: 0,
                run: None,
            },
            step: spec.init.clone().unwrap().steps[0].clone(),
            spec: spec.into(),
            source: SourceRef { file: "a.yaml".into(), line: 1 },
        };
        let planned = serde_json::to_value([&action]).unwrap();
        assert!(planned.to_string().contains("hunter1"), "{planned}");
        let shown = masked_steps(planned.clone());
        let mut expected = planned;
        *expected.pointer_mut("/0/step/with/command").unwrap() = json!(MASK);
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_value_that_becomes_or_was_a_reference_to_a_secret_is_masked_on_both_sides() {
        assert_eq!(
            lines(json!({"env": {"A": "plain"}}), json!({"env": {"A": "$S:a"}})),
            ["env.A: *** -> *** (changed)"]
        );
    }

    #[test]
    fn an_address_with_a_password_is_masked() {
        let old = json!({"env": {"DB": "postgres://u:p@h/db"}});
        assert_eq!(lines(old, Value::Null), ["env.DB: *** -> (none)"]);
        let plain = json!({"env": {"DB": "http://h:80/a@b:c"}});
        assert_eq!(lines(plain, Value::Null), ["env.DB: http://h:80/a@b:c -> (none)"]);
    }

    #[test]
    fn an_assignment_to_a_name_that_says_so_is_masked_wherever_it_is() {
        for secret in [
            "jdbc:postgresql://db/x?user=a&password=hunter2",
            "https://x/?token=hunter2",
            "Server=db;User Id=a;Password=hunter2;",
            "run --password=hunter2 --fast",
        ] {
            assert_eq!(lines(json!({"args": [secret]}), Value::Null), ["args: *** -> (none)"], "{secret}");
        }
        for secret in [
            json!(["mysql", "--password", "hunter2"]),
            json!(["x", "-api-token", "hunter2", "y"]),
            json!(["sh", "-c", "exec mysql --password hunter2 --fast"]),
            json!(["sh", "-c", "mysql --password\t'hunter2'"]),
            json!(["sh", "-c", "cd /srv; run \"--api-token\" hunter2"]),
            json!(["sh", "-c", "exec mysql --password", "hunter2"]),
        ] {
            assert_eq!(lines(json!({"args": secret}), Value::Null), ["args: *** -> (none)"]);
        }
        assert_eq!(
            lines(json!({"args": ["mysql", "--password"]}), Value::Null),
            ["args: [\"mysql\",\"--password\"] -> (none)"]
        );
        for plain in [
            "https://x/?page=2",
            "--password-file=/run/x",
            "mysql --password-file /run/x",
            "mysql --password",
            "a=b",
            "password=",
            "--max-tokens=9",
        ] {
            let shown = lines(json!({"args": [plain]}), Value::Null);
            assert!(!shown[0].contains("***"), "{plain}");
        }
        let named = json!({"env": {"MYSQL_PWD": "x", "JWT": "x", "SESSION": "x"}});
        assert!(lines(named, Value::Null).iter().all(|line| line.ends_with("*** -> (none)")));
    }

    #[test]
    fn a_personal_access_token_is_masked_and_a_path_is_shown() {
        let named = json!({"env": {"GITHUB_PAT": "x", "PAT": "x", "pat_of_ci": "x"}});
        assert!(lines(named, Value::Null).iter().all(|line| line.ends_with("*** -> (none)")));
        let plain = json!({"env": {"PATH": "/bin", "PATTERN": "x", "COMPAT": "1"}});
        assert!(lines(plain, Value::Null).iter().all(|line| !line.contains("***")));
    }

    #[test]
    fn a_token_that_tells_what_it_is_is_masked_wherever_it_is() {
        let rest = "0123456789abcdef";
        for prefix in secrets::TOKEN_PREFIXES {
            for text in [
                format!("{prefix}{rest}"),
                format!("https://{prefix}{rest}@example.org/"),
                format!("-H x:{prefix}{rest}"),
            ] {
                let shown = lines(json!({"env": {"A": text}, "args": ["a", text]}), Value::Null);
                assert_eq!(shown, ["args: *** -> (none)", "env.A: *** -> (none)"], "{text}");
            }
        }
        for plain in ["sk-SK", "sk-", "AKIA", "risk-0123456789abcdef01", "ghp_short"] {
            assert_eq!(lines(json!({"env": {"A": plain}}), Value::Null), [format!("env.A: {plain} -> (none)")]);
        }
    }

    #[test]
    fn a_field_that_is_no_variable_is_masked_by_the_clear_words_alone() {
        let new = json!({"storage": [{"secret_access_key": "x", "key": "y"}]});
        assert_eq!(
            lines(Value::Null, new),
            ["storage[0].key: (none) -> y", "storage[0].secret_access_key: (none) -> ***"]
        );
    }
}
