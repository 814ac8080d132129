//! Images: every form that they come in, what they say about running, what is kept of them.

mod build;
mod cut;
mod damaged;
mod hostile;
mod keep;
mod mutated;
mod positions;
mod registry;
mod server;
mod silent;

use std::path::Path;
use std::time::Duration;

use evenkeel::runtime::{Control, ErrorKind, Runtime, RuntimeError, Support};
use evenkeel::spec::Signal;
use evenkeel::state::Phase;
use serde_json::json;

use self::build::{Image, Layer, Packing};
use crate::support::{Sandbox, request};

/// Makes the image available, runs the service to its end, and returns what it wrote.
pub async fn run(sandbox: &Sandbox, yaml: &str) -> String {
    let request = request(yaml, 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&request).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    let output = sandbox.output(&created.as_ref());
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    output
}

/// A service that runs this script in an image.
pub fn script(image: &str, script: &str) -> String {
    format!("image: {{ name: '{image}' }}\ncommand: {{ entrypoint: [sh, -c, {script:?}] }}")
}

/// Makes an image available that can't be.
pub async fn refused(sandbox: &Sandbox, image: &str) -> RuntimeError {
    let request = request(&script(image, "true"), 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap_err()
}

/// A layout with an image in a folder; returns its reference.
pub fn layout(folder: &Path, image: &Image) -> String {
    let path = folder.join("layout");
    image.layout(&path, "app");
    format!("oci:{}:app", path.display())
}

#[tokio::test]
async fn every_form_and_packing_runs() {
    let sandbox = Sandbox::new();
    let folder = sandbox.root.path();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let own = format!("{packing:?}");
        let image = Image::new(vec![Layer::shell(), Layer::new().file("own", &own)], json!({}), packing);
        let (layout, oci, docker) = (folder.join(&own), folder.join("oci.tar"), folder.join("docker.tar"));
        image.layout(&layout, "app");
        image.oci_archive(&oci);
        image.docker_archive(&docker);
        for name in [
            format!("oci:{}", layout.display()),
            format!("oci:{}:app", layout.display()),
            format!("oci-archive:{}", oci.display()),
            format!("docker-archive:{}", docker.display()),
        ] {
            assert_eq!(run(&sandbox, &script(&name, "cat /own")).await, own.clone() + "\n", "{name}");
        }
    }
    let packed = folder.join("docker.tar.gz");
    std::fs::write(&packed, build::gzip(&std::fs::read(folder.join("docker.tar")).unwrap())).unwrap();
    assert_eq!(run(&sandbox, &script(&format!("docker-archive:{}", packed.display()), "cat /own")).await, "Zstd\n");
}

#[tokio::test]
async fn layers_hide_replace_and_link_as_they_should() {
    let sandbox = Sandbox::new();
    let lower = Layer::new()
        .directory("d/")
        .file("d/kept", "kept")
        .file("d/gone", "x")
        .file("o/hidden", "x")
        .file("turns/x", "x")
        .file("target", "linked")
        .symlink("lib", "usr/lib")
        .file("usr/lib/libc", "libc");
    let upper = Layer::new()
        .file("d/.wh.gone", "")
        .file("o/.wh..wh..opq", "")
        .file("o/own", "own")
        .file("turns", "a file now")
        .hard_link("link", "target")
        .file("lib/more", "more");
    let twice = || Layer::new().file("twice", "same");
    let layers = vec![Layer::shell(), twice(), lower, upper, twice()];
    let image = Image::new(layers, json!({}), Packing::Gzip);
    let docker = sandbox.root.path().join("docker.tar");
    image.docker_archive(&docker);
    for name in [layout(sandbox.root.path(), &image), format!("docker-archive:{}", docker.display())] {
        let output = run(&sandbox, &script(&name, "ls d o usr/lib; cat turns link lib/libc lib/more twice")).await;
        assert_eq!(output, "d:\nkept\n\no:\nown\n\nusr/lib:\nlibc\nmore\na file nowlinkedlibcmoresame\n");
    }
}

#[tokio::test]
async fn what_an_instance_writes_stays_its_own_and_survives_a_restart() {
    let sandbox = Sandbox::new();
    let name = layout(sandbox.root.path(), &Image::with(Layer::new().file("srv/old", "old")));
    let yaml = script(&name, "echo again >> /srv/log; busybox rm -f /srv/old; cat /srv/log; ls /srv");
    let request = request(&yaml, 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&request).await.unwrap();
    for _ in 0..2 {
        sandbox.runtime.start(&created.as_ref()).await.unwrap();
        sandbox.ended(&created.as_ref()).await;
    }
    assert_eq!(sandbox.output(&created.as_ref()), "again\nlog\nagain\nagain\nlog\n");
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    assert_eq!(run(&sandbox, &script(&name, "ls /srv")).await, "old\n");
}

#[tokio::test]
async fn a_read_only_root_refuses_writes_and_has_its_mounts() {
    let sandbox = Sandbox::new();
    let name = layout(sandbox.root.path(), &Image::with(Layer::new().file("srv/x", "x")));
    let yaml = script(&name, "touch /srv/new 2>/dev/null || echo refused; touch /data/new && ls /data")
        + "\nread_only_root_fs: true\nstorage: [{ type: tmpfs, target: /data }]";
    assert_eq!(run(&sandbox, &yaml).await, "refused\nnew\n");
}

#[tokio::test]
async fn images_say_how_they_run() {
    let sandbox = Sandbox::new();
    let config = json!({
        "Entrypoint": ["sh", "-c", "echo $0 $@ $GREETING $HOME; pwd; id -u; id -g; id -G; test -w /data && echo volume", "image"],
        "Cmd": ["cmd"], "Env": ["PATH=/bin", "GREETING=hello"], "WorkingDir": "/work/dir", "User": "web",
        "Volumes": { "/data": {} }, "StopSignal": "SIGUSR1", "ExposedPorts": { "80/tcp": {} },
    });
    let image = Image::new(vec![Layer::shell()], config, Packing::Gzip);
    let name = layout(sandbox.root.path(), &image);
    let rest = "/work/dir\n33\n34\n";
    let groups = if crate::support::is_root() { "4 34" } else { "34" };
    let output = run(&sandbox, &format!("image: {{ name: '{name}' }}")).await;
    assert!(output.starts_with(&format!("image cmd hello /srv\n{rest}")), "{output}");
    assert!(output.contains("volume\n"), "{output}");
    assert!(groups.split(' ').all(|group| output.contains(group)), "{output}");
    let output =
        run(&sandbox, &format!("image: {{ name: '{name}' }}\ncommand: {{ args: [mine] }}\nenv: {{ GREETING: hi }}"))
            .await;
    assert!(output.starts_with(&format!("image mine hi /srv\n{rest}")), "{output}");
    let yaml = format!("image: {{ name: '{name}' }}\ncommand: {{ entrypoint: [sh, -c, 'echo $#'] }}\nuser: '0'");
    assert_eq!(run(&sandbox, &yaml).await, "0\n");
    let forever = script(&name, "trap 'echo usr1; exit' USR1; echo armed; while :; do sleep 0.05; done");
    let request = request(&forever, 0);
    let created = sandbox.runtime.create(&request).await.unwrap();
    assert_eq!(created.stop.signal, "USR1".parse::<Signal>().unwrap());
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
}

#[tokio::test]
async fn an_image_without_a_command_or_a_user_that_it_lacks_is_refused() {
    let sandbox = Sandbox::new();
    let name = layout(sandbox.root.path(), &Image::with(Layer::new()));
    let bare = request(&format!("image: {{ name: '{name}' }}"), 0);
    sandbox.runtime.ensure_image(&bare.spec.image, &|_| {}).await.unwrap();
    let error = sandbox.runtime.create(&bare).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("command.entrypoint"), "{error}");
    for (user, said) in [("stranger", "\"stranger\""), ("4294967296", "out of range")] {
        let yaml = script(&name, "id") + &format!("\nuser: '{user}'");
        let error = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        assert!(error.message.contains(said), "{error}");
    }
    assert_eq!(sandbox.runtime.list().await.unwrap().instances, []);
}

#[tokio::test]
async fn a_required_user_who_is_root_in_the_image_is_refused() {
    let sandbox = Sandbox::new();
    if sandbox.runtime.capabilities().await.unwrap().support(Control::User) != Support::Enforced {
        return;
    }
    let table = Layer::new().file("etc/passwd", "web:x:0:0::/:/bin/sh\nlog:x:7:0::/:/bin/sh\n");
    let image = Image::new(vec![Layer::shell(), table], json!({}), Packing::Gzip);
    let name = layout(sandbox.root.path(), &image);
    let required =
        |user: &str| request(&format!("{}\nuser: {user}\nsandbox: {{ require: [user] }}", script(&name, "id")), 0);
    sandbox.runtime.ensure_image(&required("web").spec.image, &|_| {}).await.unwrap();
    let error = sandbox.runtime.create(&required("web")).await.unwrap_err();
    let told = "sandbox.require: user does not hold: /etc/passwd of the image says that this user is root (number 0); write \
                another one";
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Rejected, told));
    sandbox.runtime.create(&required("log")).await.unwrap();
}

/// What is looked up in an image must neither hang nor lead to the machine's own files.
#[tokio::test]
async fn tables_of_users_of_any_shape_are_read_inside_of_the_image_alone() {
    let sandbox = Sandbox::new();
    let huge = "x".repeat(3 << 20);
    let shapes = [
        Layer::new().symlink("etc/passwd", "/proc/self/environ"),
        Layer::new().symlink("etc/passwd", "../../../../../../../../etc/hostname"),
        Layer::new().add(tar::EntryType::Fifo, "etc/passwd", "", 0o644, b""),
        Layer::new().file("etc/passwd", &huge),
        Layer::new().directory("etc/passwd"),
        Layer::new().symlink("etc", "etc"),
    ];
    for (number, shape) in shapes.into_iter().enumerate() {
        let name = layout(&sandbox.root.path().join(number.to_string()), &Image::with(shape));
        let output = tokio::time::timeout(Duration::from_secs(20), run(&sandbox, &script(&name, "echo runs"))).await;
        assert_eq!(output.unwrap(), "runs\n", "{number}");
        let error = sandbox.runtime.create(&request(&(script(&name, "id") + "\nuser: daemon"), 0)).await.unwrap_err();
        assert!(error.message.contains("\"daemon\""), "{error}");
    }
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_root() {
    let sandbox = Sandbox::new();
    let name = layout(sandbox.root.path(), &Image::new(vec![], json!({ "Cmd": ["/app"] }), Packing::Gzip));
    let request = request(&format!("image: {{ name: '{name}' }}"), 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&request).await.unwrap();
    assert!(matches!(created.phase, Phase::Created));
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert!(error.message.contains("/app"), "{error}");
}

#[tokio::test]
async fn an_image_for_another_processor_runs_and_that_is_told() {
    let sandbox = Sandbox::new();
    let built = |architecture| Image::built_for(architecture, vec![Layer::shell()], json!({}), Packing::Gzip);
    let folder = sandbox.root.path();
    let (archive, docker) = (folder.join("oci.tar"), folder.join("docker.tar"));
    built("s390x").oci_archive(&archive);
    built("s390x").docker_archive(&docker);
    for name in [
        layout(folder, &built("s390x")),
        format!("oci-archive:{}", archive.display()),
        format!("docker-archive:{}", docker.display()),
    ] {
        let request = request(&script(&name, "echo runs"), 0);
        sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
        let created = sandbox.runtime.create(&request).await.unwrap();
        let told: Vec<_> = created.conditions.iter().filter(|one| one.reason == "ImagePlatform").collect();
        let own = format!("this machine is linux/{}", build::architecture());
        assert_eq!(told.len(), 1, "{name}: {:?}", created.conditions);
        assert!(told[0].message.contains("for linux/s390x") && told[0].message.contains(&own), "{}", told[0].message);
        sandbox.runtime.remove(&created.as_ref()).await.unwrap();
        assert_eq!(run(&sandbox, &script(&name, "echo runs")).await, "runs\n", "{name}");
    }
    let request = request(&script(&layout(&folder.join("own"), &built(build::architecture())), "true"), 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&request).await.unwrap();
    assert!(created.conditions.iter().all(|one| one.reason != "ImagePlatform"), "{:?}", created.conditions);
}

#[tokio::test]
async fn a_changed_file_is_another_image() {
    let sandbox = Sandbox::new();
    let path = sandbox.root.path().join("app.tar");
    let name = format!("docker-archive:{}", path.display());
    for own in ["one", "other"] {
        Image::with(Layer::new().file("own", own)).docker_archive(&path);
        assert_eq!(run(&sandbox, &script(&name, "cat /own")).await, format!("{own}\n"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_by_name() {
    let sandbox = Sandbox::new();
    let folder = sandbox.root.path();
    layout(folder, &Image::with(Layer::new()));
    std::fs::write(folder.join("text"), "no archive").unwrap();
    let inside = folder.display();
    for (name, said, kind) in [
        ("docker-archive:/no/such.tar".to_owned(), "/no/such.tar", ErrorKind::ImageUnavailable),
        ("oci-archive:/no/such.tar".to_owned(), "/no/such.tar", ErrorKind::ImageUnavailable),
        ("oci:/no/such".to_owned(), "/no/such", ErrorKind::ImageUnavailable),
        ("oci-archive:/dev/null".to_owned(), "not a regular file", ErrorKind::ImageUnavailable),
        (format!("oci:{inside}/layout:other"), "only: app", ErrorKind::ImageUnavailable),
        (format!("docker-archive:{inside}/text"), "no image archive", ErrorKind::Rejected),
    ] {
        let error = refused(&sandbox, &name).await;
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(&name) && error.message.contains(said), "{error}");
    }
}

/// The same once more where the sandbox directory lies on a file system that can't take overlays.
#[test]
fn images_run_without_overlays_too() {
    if !crate::support::is_root() || std::env::var_os("KEEL_TEST_NO_OVERLAY").is_some() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // An overlay can't be written to through another one.
    let script = "set -e; cd \"$0\"; mkdir l u w tmp; mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w tmp; \
                  TMPDIR=\"$0/tmp\" exec \"$1\" --skip without_overlays --skip ordinary_user images:: storage::";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .env("KEEL_TEST_NO_OVERLAY", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn copies_are_made_where_there_are_no_overlays() {
    let sandbox = Sandbox::new();
    let name = layout(sandbox.root.path(), &Image::with(Layer::new()));
    let request = request(&script(&name, "true"), 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&request).await.unwrap();
    let record = crate::support::read_json(&sandbox.dir(&created.as_ref()).join("record.json"));
    let is_copy = record["launch"]["root"]["copy"].is_object();
    assert_eq!(is_copy, std::env::var_os("KEEL_TEST_NO_OVERLAY").is_some(), "{}", record["launch"]["root"]);
}
