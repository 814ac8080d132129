//! Kernel parameters of an instance's own namespaces.

use std::fs;

use evenkeel::runtime::Runtime;
use evenkeel::state::Phase;

use crate::support::{Sandbox, is_root, request, shell, skip};

/// Parameters that are read inside, with values that no machine has by itself.
const SET: &[(&str, &str)] = &[
    ("kernel/sem", "251\t32001\t33\t129"),
    ("kernel/shmmax", "68719476736"),
    ("kernel/msgmnb", "16385"),
    ("fs/mqueue/msg_max", "11"),
    ("net/core/somaxconn", "1031"),
    ("net/ipv4/ip_unprivileged_port_start", "79"),
    ("net/ipv4/conf/lo/forwarding", "1"),
    ("kernel/domainname", "keel.test"),
];

fn machines() -> Vec<String> {
    SET.iter().map(|(path, _)| fs::read_to_string(format!("/proc/sys/{path}")).unwrap()).collect()
}

fn fields(sysctls: impl IntoIterator<Item = (String, String)>) -> String {
    let lines: String = sysctls.into_iter().map(|(name, value)| format!("\n  {name}: {value:?}")).collect();
    // Root inside as outside: an ordinary user's kernel gives IPC parameters to no one else.
    format!("user: '0'\nsandbox: {{ network: loopback }}\nsysctls:{lines}")
}

#[tokio::test]
async fn parameters_are_set_inside_stay_as_they_are_and_leave_the_machine_alone() {
    let (sandbox, before) = (Sandbox::new(), machines());
    let yaml = fields(SET.iter().map(|(path, value)| (path.replace('/', "."), value.replace('\t', " "))));
    let paths: String = SET.iter().map(|(path, _)| format!("/proc/sys/{path} ")).collect();
    let (exit, output) = sandbox
        .script_with(&yaml, &format!("cat {paths}; (echo 5 > /proc/sys/kernel/shmmni) 2>/dev/null || echo read-only"))
        .await;
    let told = sandbox.find(&sandbox.first().await).await.unwrap().conditions;
    // Without namespaces, or as an ordinary user of a kernel before Linux 6.9, which gives IPC parameters to root alone.
    let old = "setting kernel/shm_rmid_forced";
    if let Some(condition) = told.iter().find(|one| !one.reason.starts_with("Sysctls") || one.message.contains(old)) {
        return skip(&condition.message);
    }
    assert_eq!(told, [], "{output}");
    let values: Vec<&str> = SET.iter().map(|(_, value)| *value).collect();
    assert_eq!(output.lines().take(SET.len()).collect::<Vec<_>>(), values);
    assert!(output.ends_with("read-only\n"), "{output}");
    assert_eq!((exit.code, machines()), (Some(0), before));
}

#[tokio::test]
async fn what_is_the_machines_is_told_and_not_set() {
    let (sandbox, before) = (Sandbox::new(), machines());
    let more = "network_mode: host\nuser: '1000'\nsysctls: { net.core.somaxconn: 9, vm.swappiness: 7, kernel.hostname: x, kernel.shmmni: 99 }";
    let created = sandbox.runtime.create(&request(&format!("{}\n{more}", shell("true")), 0)).await.unwrap();
    let reasons = created.conditions.iter().map(|one| one.reason.as_str());
    let told: Vec<&str> = reasons.filter(|reason| reason.starts_with("Sysctls")).collect();
    let mut expected = vec!["SysctlsKernelHostname"];
    // In an ordinary user's instance nobody but its root may.
    expected.extend((!is_root()).then_some("SysctlsKernelShmmni"));
    expected.extend(["SysctlsNetCoreSomaxconn", "SysctlsVmSwappiness"]);
    assert_eq!(told, expected);
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    assert_eq!(machines(), before);
}

#[tokio::test]
async fn a_value_or_a_name_that_the_kernel_does_not_take_fails_the_start_with_the_reason() {
    let sandbox = Sandbox::new();
    for (slot, (name, value, expected)) in [
        ("net.core.somaxconn", "many", "sysctls: net.core.somaxconn: the kernel does not take \"many\""),
        ("net.core.nothing", "1", "sysctls: net.core.nothing: no namespace of an instance has such a parameter"),
    ]
    .into_iter()
    .enumerate()
    {
        let yaml = format!("{}\n{}", shell("true"), fields([(name.to_owned(), value.to_owned())]));
        let created = sandbox.runtime.create(&request(&yaml, u32::try_from(slot).unwrap())).await.unwrap();
        let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert!(!matches!(sandbox.find(&created.as_ref()).await.unwrap().phase, Phase::Running { .. }));
    }
}
