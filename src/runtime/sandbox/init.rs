//! The first process of an instance: builds its surroundings, then is the program or the init process above it.

use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, kill_process, set_dumpable_behavior, setsid, wait,
};
use rustix::thread::CapabilitySet;

use super::attach::Console;
use super::capabilities::has;
use super::cgroup::{Seat, Window};
use super::failure::{Context, Failure};
use super::layout::InstanceDir;
use super::network::{self, Handover, Wire};
use super::program::{
    Filters, Program, Workdir, confine, end_with_parent, environment, execute, restrict, set_oom_score,
};
use super::record::{Identity, Launch, Root};
use super::rootfs;
use super::sys::{self, Fork, Namespaces, pages};

/// What a program tells its supervisor once all is prepared and it waits to be let go.
pub const READY: u8 = b'R';
/// What the supervisor writes to let it go.
pub const GO: u8 = b'G';

/// The lowest port of a network namespace that every user may listen on. In one that is an instance's own there is nothing to
/// protect: a program that needs no other right of root listens on port 80, as in Docker.
const LOWEST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Silence after which the init process gives up the code that it does not need while it waits. A program that ends at once
/// needs no more than what is there.
const REST_AFTER: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The ends of pipes that the first process holds.
#[derive(Debug)]
pub struct Ends {
    /// Standard descriptors of the program.
    pub console: Console,
    /// Tells the supervisor [`READY`] or a [`Failure`] as JSON; closed by a successful exec.
    pub outcome: fs::File,
    /// The supervisor's [`GO`]; ends when the supervisor does.
    pub gate: fs::File,
    /// Takes the wait status of the program from the init process, as four bytes.
    pub status: fs::File,
    /// Its place in its control groups.
    pub seat: Seat,
    /// Takes its /proc, where the supervisor wants to look at the processes in it.
    pub window: Option<Window>,
    /// Its way into the network of its deployment.
    pub wire: Option<Wire>,
    /// Takes its network, where the supervisor wants to hand connections on.
    pub handover: Option<Handover>,
    /// The machine's null device.
    pub null: OwnedFd,
}

impl Ends {
    /// Lets go of everything else that the supervisor has open, its standard descriptors too: an image may lead what is
    /// opened from here on to a descriptor of this process. The owners of what is closed must never drop it.
    fn keep_alone(&self) -> Result<(), Failure> {
        for number in 0..=2 {
            sys::replace_standard(number, self.null.as_fd()).context("leaving the supervisor's descriptors")?;
        }
        let mut kept = self.console.descriptors();
        kept.extend([self.outcome.as_fd(), self.gate.as_fd(), self.status.as_fd(), self.null.as_fd()]);
        kept.extend(self.seat.descriptors());
        kept.extend(self.window.iter().flat_map(Window::descriptors));
        kept.extend(self.wire.iter().map(Wire::descriptor));
        kept.extend(self.handover.iter().flat_map(Handover::descriptors));
        sys::close_all_but(&kept);
        Ok(())
    }
}

/// User and group outside, for the map of a user namespace.
#[derive(Debug, Clone, Copy)]
pub struct Outside {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Outside {
    /// User and group of this process.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// In a new user namespace, maps root to this user.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map_as_root(self) -> std::io::Result<()> {
        map_user(&Identity::default(), self)
    }
}

/// Runs as the first process of an instance; never returns.
pub fn run(launch: &Launch, dir: &InstanceDir, identity: &Identity, outside: Outside, ends: Ends) -> ! {
    let alone = ends.keep_alone();
    let Ends { console, mut outcome, gate, status, seat, window, wire, handover, null } = ends;
    drop(null);
    let prepared =
        alone.and_then(|()| prepare(launch, dir, identity, outside, &seat, window.as_ref(), (wire, handover)));
    drop((seat, window));
    let result = prepared.and_then(|()| {
        let filters = Filters::of(launch)?;
        if !(launch.init && launch.namespaces.pid) {
            drop(status);
            return Err(become_program(launch, identity, &console, &mut outcome, gate, &filters, None));
        }
        let (confined, tell) = io::pipe().context("making a pipe")?;
        match sys::fork(Namespaces::default()).context("forking the program")? {
            Fork::Child => {
                drop((status, tell));
                Err(become_program(launch, identity, &console, &mut outcome, gate, &filters, Some(confined)))
            }
            Fork::Parent { pid, .. } => {
                drop((console, gate, confined));
                Ok((pid, status, confine_init(launch, identity, &filters)?, tell))
            }
        }
    });
    match result {
        Ok((pid, status, signals, mut tell)) => {
            drop(outcome);
            // Whatever else is open is the machine's.
            sys::close_all_but(&[status.as_fd(), signals.as_fd(), tell.as_fd()]);
            // Where the program is gone already, its end is told below.
            let _ = tell.write_all(&[READY]);
            drop(tell);
            reap_until(pid, status, &signals)
        }
        Err(failure) => {
            let text = serde_json::to_vec(&failure).unwrap_or_default();
            let _ = outcome.write_all(&text);
            std::process::exit(failure.code)
        }
    }
}

/// Builds the namespaces' contents.
fn prepare(
    launch: &Launch,
    dir: &InstanceDir,
    identity: &Identity,
    outside: Outside,
    seat: &Seat,
    window: Option<&Window>,
    (wire, handover): (Option<Wire>, Option<Handover>),
) -> Result<(), Failure> {
    end_with_parent()?;
    // Before anything else: what this process and its children use from here on is the instance's.
    seat.enter().context("entering the control groups")?;
    setsid().context("making a session")?;
    if launch.namespaces.user {
        map_user(identity, outside).context("mapping the user")?;
    }
    if launch.namespaces.cgroup {
        sys::own_cgroup_namespace().context("making a cgroup namespace")?;
    }
    set_oom_score(launch)?;
    if launch.namespaces.uts {
        rustix::system::sethostname(launch.hostname.as_bytes()).context("setting the host name")?;
    }
    match wire {
        Some(mut wire) => wire.connect()?,
        None if launch.namespaces.net => sys::loopback_up().context("bringing the loopback interface up")?,
        None => {}
    }
    if launch.namespaces.net {
        network::pave(&launch.network)?;
        // Where it can't be written, as inside of containers, low ports stay root's.
        let _ = fs::write(LOWEST_FREE_PORT, "0");
    }
    if let Some(handover) = handover {
        handover
            .hand_out(launch.namespaces.user, launch.network.egress.is_some())
            .context("showing the network to the supervisor")?;
    }
    if launch.namespaces.mount && launch.root != Root::Shared {
        rootfs::enter(launch, dir, identity)?;
    }
    if let Some(window) = window {
        window.hand_out().context("showing /proc to the supervisor")?;
    }
    close_to_others()
}

/// Nothing inside may look into this process: its program file and memory are those of the controller.
fn close_to_others() -> Result<(), Failure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("closing the process to others")
}

/// Maps the one user that an unprivileged process may map.
fn map_user(identity: &Identity, outside: Outside) -> std::io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{} {} 1", identity.gid, outside.gid))?;
    fs::write("/proc/self/uid_map", format!("{} {} 1", identity.uid, outside.uid))
}

/// Waits until the init process, if any, is confined and for the supervisor's word, and becomes the program; returns only
/// on failure.
fn become_program(
    launch: &Launch,
    identity: &Identity,
    console: &Console,
    outcome: &mut fs::File,
    mut gate: fs::File,
    filters: &Filters,
    init: Option<PipeReader>,
) -> Failure {
    let program = Program {
        command: &launch.command,
        env: environment(launch, identity),
        workdir: Workdir::OfSpec(launch.workdir.as_deref()),
        identity,
        launch,
    };
    // The init process leads the first session; the program leads one of its own.
    let _ = setsid();
    let confined = console
        .connect(launch, identity)
        .context("connecting the standard descriptors")
        .and_then(|()| confine(&program, filters))
        .and_then(|()| end_with_parent());
    if let Err(failure) = confined {
        return failure;
    }
    let mut word = [0];
    if init.is_some_and(|mut init| !matches!(init.read(&mut word), Ok(1))) {
        return Failure::setup("the init process is gone");
    }
    if outcome.write_all(&[READY]).is_err() {
        return Failure::setup("the supervisor is gone");
    }
    match gate.read(&mut word) {
        Ok(1) if word == [GO] => execute(&program),
        _ => Failure::setup("the supervisor is gone"),
    }
}

/// Makes the init process no stronger than the program, which may be able to take it over, and returns where signals
/// arrive.
fn confine_init(launch: &Launch, identity: &Identity, filters: &Filters) -> Result<OwnedFd, Failure> {
    let _ = rustix::thread::set_name(c"keel-init");
    let signals = sys::take_signals().context("taking signals")?;
    restrict(identity, launch, capabilities_of_init(launch.capabilities), filters)?;
    end_with_parent()?;
    // A change of user can undo it.
    close_to_others()?;
    Ok(signals)
}

/// What the init process may: as much as the program, and hand signals on to it where it can become another user.
fn capabilities_of_init(program: u64) -> u64 {
    let kill = if has(program, "SETUID") { CapabilitySet::KILL } else { CapabilitySet::empty() };
    program | kill.bits()
}

/// The init process: hands signals on to the program, reaps what is left behind, and ends when the program does,
/// which has the kernel end everything else in the process namespace.
fn reap_until(program: Pid, mut status: fs::File, signals: &OwnedFd) -> ! {
    let mut rests = false;
    loop {
        while let Some(ended) = next_ended() {
            if ended.0 == program {
                let _ = status.write_all(&ended.1.as_raw().to_ne_bytes());
                std::process::exit(ended.1.exit_status().unwrap_or(super::failure::NOT_BUILT));
            }
        }
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        let silent = matches!(poll(&mut fds, (!rests).then_some(&REST_AFTER)), Ok(0));
        if silent {
            pages::release_code();
            rests = true;
        }
        while let Some(number) = sys::next_signal(signals.as_fd()) {
            if let Some(signal) = sys::signal(number).filter(|signal| *signal != Signal::CHILD) {
                let _ = kill_process(program, signal);
            }
        }
    }
}

/// The next child that ended, without waiting.
pub fn next_ended() -> Option<(Pid, WaitStatus)> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(ended) => return ended,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_can_signal_a_program_that_becomes_another_user_and_has_no_other_capability_of_its_own() {
        let (kill, setuid, chown) = (1 << 5, 1 << 7, 1);
        assert_eq!(capabilities_of_init(0), 0);
        assert_eq!(capabilities_of_init(chown), chown);
        assert_eq!(capabilities_of_init(chown | setuid), chown | setuid | kill);
    }
}
