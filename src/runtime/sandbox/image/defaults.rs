//! What an image says about running it, where the spec says nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::document::Config;
use super::error::quoted;
use crate::runtime::sandbox::protected::protecting;
use crate::runtime::{CreateRequest, ErrorKind, RuntimeError};
use crate::spec::{Command, Storage};
use crate::state::Condition;

/// The request with the image's defaults filled in, and a condition where some of them are left out.
///
/// # Errors
/// `Rejected` where the image says something that can't be.
pub fn filled(request: &CreateRequest, config: &Config) -> Result<(CreateRequest, Option<Condition>), RuntimeError> {
    let wrong =
        |what: String| RuntimeError::new(ErrorKind::Rejected, format!("image {}: {what}", request.spec.image.name));
    let mut request = request.clone();
    let spec = Arc::make_mut(&mut request.spec);
    spec.command = Some(command(spec.command.take(), config));
    let written = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    spec.user = spec.user.take().or_else(|| written(&config.user));
    if spec.stop_signal.is_none()
        && let Some(signal) = written(&config.stop_signal)
    {
        let known = signal.parse().map_err(|_| wrong(format!("its stop signal {} is not known", quoted(&signal))))?;
        spec.stop_signal = Some(known);
    }
    let mut left_out = Vec::new();
    for target in config.volumes.iter().flat_map(BTreeMap::keys) {
        let names = crate::runtime::sandbox::inside::components(target)
            .map_err(|error| wrong(format!("its volume {} can't be mounted: {error}", quoted(target))))?;
        if names.is_empty() {
            return Err(wrong("its volume / would cover the root".to_owned()));
        }
        let plain = format!("/{}", names.join("/"));
        if protecting(Path::new(&plain), &[]).is_some() {
            left_out.push(plain);
            continue;
        }
        let covered = |storage: &Storage| {
            crate::runtime::sandbox::inside::components(storage.target()).is_ok_and(|other| other == names)
        };
        if !spec.storage.iter().any(covered) {
            spec.storage.push(Storage::Anonymous { target: target.clone(), tier: None });
        }
    }
    let mut env: BTreeMap<String, String> = config.env.iter().flatten().filter_map(|text| variable(text)).collect();
    env.append(&mut request.env);
    request.env = env;
    Ok((request, volumes_left_out(&left_out)))
}

/// Tells of volumes that an image asks for and an instance does not get.
fn volumes_left_out(targets: &[String]) -> Option<Condition> {
    let message = || {
        format!(
            "the image asks for volumes over what is made for each instance; there are none at {}",
            targets.join(", ")
        )
    };
    (!targets.is_empty()).then(|| Condition::holds("Degraded", "VolumeLeftOut", message()))
}

/// As Docker has it: an entrypoint of one's own drops the image's arguments as well.
fn command(own: Option<Command>, config: &Config) -> Command {
    let own = own.unwrap_or(Command { entrypoint: None, args: None, workdir: None });
    let args = match (&own.entrypoint, own.args) {
        (_, Some(args)) => Some(args),
        (Some(_), None) => None,
        (None, None) => config.cmd.clone(),
    };
    Command {
        entrypoint: own.entrypoint.or_else(|| config.entrypoint.clone()),
        args,
        workdir: own.workdir.or_else(|| config.working_dir.as_deref().filter(|text| !text.is_empty()).map(absolute)),
    }
}

/// Relative directories start at the root.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// A variable; one without a value is not one of an image.
fn variable(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    (!name.is_empty() && !text.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ServiceSpec;
    use crate::state::InstanceId;

    fn request(yaml: &str) -> CreateRequest {
        let spec: ServiceSpec = serde_yaml::from_str(&format!("image: {{ name: app }}\n{yaml}")).unwrap();
        CreateRequest {
            id: InstanceId {
                deployment: "d".into(),
                service: "s".into(),
                slot: 0,
                revision: "v1-0123456789abcdef".parse().unwrap(),
                attempt: 0,
                run: None,
            },
            restarts: 0,
            streak: 0,
            env: spec.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect(),
            spec: spec.into(),
            source: None,
        }
    }

    fn config() -> Config {
        let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        Config {
            user: Some("web".into()),
            env: list(&["PATH=/opt/bin", "A=image", "BROKEN", "=x"]),
            entrypoint: list(&["/entry"]),
            cmd: list(&["serve", "--all"]),
            volumes: Some(BTreeMap::from([("/data".into(), serde_json::json!({}))])),
            working_dir: Some("srv".into()),
            stop_signal: Some("SIGQUIT".into()),
        }
    }

    fn words(yaml: &str) -> Vec<String> {
        let (filled, _) = filled(&request(yaml), &config()).unwrap();
        let command = filled.spec.command.clone().unwrap();
        command.entrypoint.unwrap_or_default().into_iter().chain(command.args.unwrap_or_default()).collect()
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        assert_eq!(words(""), ["/entry", "serve", "--all"]);
        assert_eq!(words("command: { args: [help] }"), ["/entry", "help"]);
        assert_eq!(words("command: { args: [] }"), ["/entry"]);
        assert_eq!(words("command: { entrypoint: [sh] }"), ["sh"]);
        assert_eq!(words("command: { entrypoint: [sh], args: [-c, x] }"), ["sh", "-c", "x"]);
        assert_eq!(words("command: { workdir: /x }"), ["/entry", "serve", "--all"]);
    }

    #[test]
    fn what_the_spec_says_wins() {
        let (all, _) = filled(&request(""), &config()).unwrap();
        assert_eq!((all.spec.user.as_deref(), all.spec.stop_signal), (Some("web"), "QUIT".parse().ok()));
        assert_eq!(all.spec.command.as_ref().unwrap().workdir.as_deref(), Some("/srv"));
        assert_eq!(all.spec.storage, [Storage::Anonymous { target: "/data".into(), tier: None }]);
        let pairs: Vec<_> = all.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "image"), ("PATH", "/opt/bin")]);
        let own = "user: '5'\nstop_signal: INT\nenv: { A: own }\nstorage: [{ type: tmpfs, target: /data/ }]\n\
                   command: { workdir: /own }";
        let (own, _) = filled(&request(own), &config()).unwrap();
        assert_eq!((own.spec.user.as_deref(), own.spec.stop_signal), (Some("5"), "INT".parse().ok()));
        assert_eq!(own.spec.command.as_ref().unwrap().workdir.as_deref(), Some("/own"));
        assert_eq!((own.spec.storage.len(), own.env["A"].as_str()), (1, "own"));
    }

    #[test]
    fn volumes_that_lead_out_are_refused() {
        for path in ["/a/../../etc", "../../etc", "/", "relative"] {
            let config = Config {
                volumes: Some(BTreeMap::from([(path.to_owned(), serde_json::json!({}))])),
                ..Config::default()
            };
            let error = filled(&request(""), &config).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Rejected, "{path}");
            assert!(error.message.contains(path), "{error}");
        }
    }
}
