//! What the writer probably meant.

use super::problem::Step;

/// How alike two names must be to be suggested (Jaro-Winkler, 0 to 1): `imgae` and `image` are at 0.95,
/// `name` and `names` at 0.96, unrelated names of the format mostly below 0.8.
const ALIKE: f64 = 0.86;

/// The known name that `text` most likely stands for.
pub(super) fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = text.to_ascii_lowercase().replace('-', "_");
    let score = |name: &str| strsim::jaro_winkler(&folded, &name.to_ascii_lowercase().replace('-', "_"));
    known
        .iter()
        .map(|name| (score(name), *name))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// Names that people know from Compose files and Kubernetes manifests, the field here, and how to write it.
const OTHER_WORDS: &[(&str, &str, &str)] = &[
    ("cpus", "resources", "write `resources: { cpu: 1.5 }`"),
    ("containers", "services", "write one entry under `services` per container"),
    ("depends_on", "depends", "write `depends: [{ service: NAME }]`"),
    ("entrypoint", "command", "write `command: { entrypoint: [...] }`"),
    ("args", "command", "write `command: { args: [...] }`"),
    ("environment", "env", "write `env: { NAME: value }`"),
    ("healthcheck", "health", "write `health: { check: { type: http, url: ... } }`"),
    ("livenessProbe", "health", "write `health: { check: { type: http, url: ... } }`"),
    ("readinessProbe", "health", "write `health: { check: { type: http, url: ... } }`"),
    ("mem_limit", "resources", "write `resources: { memory: 512Mi }`"),
    ("memory", "resources", "write `resources: { memory: 512Mi }`"),
    ("name", "deployment", "write `deployment: NAME`"),
    ("networks", "network_mode", "services of a deployment share a network already; see `network_mode`"),
    ("ports", "port_mappings", "write `port_mappings: [{ container_port: 80, host_port: 8080 }]`"),
    ("read_only", "read_only_root_fs", "write `read_only_root_fs: true`"),
    ("replicas", "scale", "write `scale: { mode: fixed, replicas: 3 }`"),
    ("restart", "restart_policy", "write `restart_policy: { kind: always }`"),
    ("strategy", "rollout", "write `rollout: { strategy: rolling }`"),
    ("volumes", "storage", "write `storage: [{ type: bind, source: ./data, target: /data }]`"),
    ("volumeMounts", "storage", "write `storage: [{ type: bind, source: ./data, target: /data }]`"),
    ("working_dir", "command", "write `command: { workdir: /app }`"),
    ("workingDir", "command", "write `command: { workdir: /app }`"),
];

/// Where a name of another tool's format belongs, if that field is known here.
pub(super) fn elsewhere(key: &str, known: &[&str]) -> Option<String> {
    let candidates = || OTHER_WORDS.iter().filter(|(_, field, _)| known.contains(field));
    let exact = candidates().find(|(word, _, _)| *word == key);
    let similar = || {
        let words: Vec<&str> = candidates().map(|(word, _, _)| *word).chain(known.iter().copied()).collect();
        let best = nearest(key, &words)?;
        candidates().find(|(word, _, _)| *word == best)
    };
    exact.or_else(similar).map(|(_, _, help)| (*help).to_owned())
}

/// How a map is written that was given as something else.
pub(super) fn shape(definition: &str, path: &[Step], text: Option<&str>) -> Option<String> {
    if let ("Image", Some(text)) = (definition, text.filter(|text| !text.is_empty())) {
        return Some(format!("write `image: {{ name: {text:?} }}`"));
    }
    let help = match (definition, path.last()) {
        ("Image", _) => "write `image: { name: nginx:1.27 }`",
        ("Depends", _) => "write `{ service: NAME }`",
        ("Device", _) => "write `{ path: /dev/kvm }`",
        ("Endpoint", _) => "write `{ name: http, protocol: http, port: 80 }`",
        ("PortMapping", _) => "write `{ container_port: 80, host_port: 8080 }`",
        ("RestartPolicy", _) => "write `{ kind: always }`",
        ("Ulimit", _) => "write `{ soft: 1024, hard: 4096 }`",
        ("Command", _) => "write `command: { entrypoint: [...], args: [...] }`",
        ("ServiceSpec", _) => "write a map with at least `image: { name: ... }`",
        (_, Some(Step::Key(key))) if key == "env" || key == "labels" || key == "sysctls" => {
            "write one `NAME: value` per line, without dashes"
        }
        (_, Some(Step::Key(key))) if key == "on_panic" || key == "on_init_failure" => "write `{ action: restart }`",
        (_, Some(Step::Key(key))) if key == "services" => "write one `NAME:` per service, without dashes",
        _ => return None,
    };
    Some(help.to_owned())
}

/// How a required field is written.
pub(super) fn required(field: &str) -> Option<String> {
    let help = match field {
        "version" => "write `version: v1`",
        "deployment" => "write `deployment: NAME`",
        "service" => "write `service: NAME`",
        "image" => "write `image: { name: nginx:1.27 }`",
        "check" => "write `check: { type: http, url: http://localhost/ }`",
        _ => return None,
    };
    Some(help.to_owned())
}

/// What stands for the text of a field in an example.
pub(super) fn placeholder(field: &str) -> &'static str {
    match field {
        "target" | "source" | "path" => "/PATH",
        "url" => "http://localhost/",
        "name" | "service" | "bucket" => "NAME",
        _ => "TEXT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_field() {
        let known = ["image", "env", "endpoints", "expose", "health", "read_only_root_fs", "storage"];
        for (text, expected) in [
            ("imgae", Some("image")),
            ("Image", Some("image")),
            ("endpoint", Some("endpoints")),
            ("helth", Some("health")),
            ("readOnlyRootFs", Some("read_only_root_fs")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(text, &known), expected, "{text}");
        }
    }

    #[test]
    fn words_of_other_tools_are_only_translated_where_the_field_is_known() {
        assert!(elsewhere("ports", &["port_mappings"]).is_some_and(|help| help.contains("container_port")));
        assert_eq!(elsewhere("ports", &["image"]), None);
    }
}
