//! Processes beside a supervisor that hand connections and datagrams on for its instance, and the one that connects it
//! where that is a process. They may have threads, which a supervisor may not, and end with it. One that ends before is
//! started again.

use std::ffi::CStr;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{
    DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, getpid, getppid, getrlimit, pidfd_send_signal,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::egress::{self, Policy};
use super::handover::Place;
use super::pasta::{Connecting, Pasta};
use super::publish::{Listening, listen, serve};
use super::{Link, Network};
use crate::runtime::sandbox::descriptors;
use crate::runtime::sandbox::failure::{Context, Failure};
use crate::runtime::sandbox::layout::InstanceDir;
use crate::runtime::sandbox::program;
use crate::runtime::sandbox::sys::{self, Fork, Namespaces};

/// The user and group of helpers: one that owns nothing, and that no distribution gives to anybody (65520 to 65533 of
/// systemd's UIDs and GIDs). As nobody (65534) they would be counted together with whatever else runs as that.
const HELPER: u32 = 65_533;
/// Pause before a helper that ended is started again, at first: systemd's default for services.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause, where it ends again and again: short enough that a port is not missed for long once the cause is
/// gone.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Time after which one that ran counts as healthy.
const STEADY: Duration = Duration::from_secs(60);

/// Sockets of the machine that a helper will serve, opened before the program starts: that a port is taken is a failure
/// of the start.
#[derive(Debug)]
pub struct Prepared {
    listening: Vec<Listening>,
}

/// What a helper does.
#[derive(Debug)]
enum Work {
    /// Connects the instance: a program of others, of which a note is kept at the path.
    Connect(Pasta, PathBuf),
    /// Serves sockets.
    Serve(Service),
}

/// What is served. The supervisor holds the sockets as well, so that clients wait in the kernel's queues while a helper
/// that was killed is started again.
#[derive(Debug)]
enum Service {
    /// Hands on what comes to ports of the machine. The address is the instance's in the network of its
    /// deployment.
    Ports(Vec<Listening>, Option<Ipv4Addr>),
    /// Is the egress proxy.
    Egress(TcpListener, Policy),
}

impl Service {
    fn name(&self) -> &'static CStr {
        match self {
            Self::Ports(..) => c"keel-ports",
            Self::Egress(..) => c"keel-egress",
        }
    }

    fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Ports(listening, _) => listening.iter().map(AsFd::as_fd).collect(),
            Self::Egress(proxy, _) => vec![proxy.as_fd()],
        }
    }

    /// Whether it connects in the instance's network, not in the machine's.
    fn is_inside(&self) -> bool {
        matches!(self, Self::Ports(..))
    }

    fn serve(&self) -> ! {
        // Connections take two each and flows of datagrams one: more together than the common limit.
        descriptors::raise();
        match self {
            Self::Ports(listening, own) => serve(listening, *own),
            Self::Egress(proxy, policy) => egress::serve(proxy, policy.clone()),
        }
    }
}

/// One helper.
#[derive(Debug)]
struct Helper {
    work: Work,
    state: State,
    /// Pause before the next start.
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Running {
        pid: Pid,
        process: OwnedFd,
        since: Instant,
    },
    /// It ended before its supervisor, and is started again then.
    Ended {
        due: Instant,
    },
}

impl Helper {
    fn new(work: Work) -> Self {
        Self { work, state: State::Ended { due: Instant::now() }, pause: FIRST_PAUSE }
    }

    /// Starts it, and returns what tells when it has connected the instance, where that is what it does.
    fn start(&mut self, place: &Place) -> Result<Option<Connecting>, Failure> {
        let (pid, process, connecting) = match &self.work {
            Work::Connect(pasta, note) => {
                let (pid, process, connecting) = pasta.start(place, note).context("starting pasta")?;
                (pid, process, Some(connecting))
            }
            Work::Serve(service) => {
                match fork(service.name(), &service.sockets(), service.is_inside().then_some(place))? {
                    Some((pid, process)) => (pid, process, None),
                    None => service.serve(),
                }
            }
        };
        self.state = State::Running { pid, process, since: Instant::now() };
        Ok(connecting)
    }

    /// Puts the next start off, for longer each time unless it ran for a while.
    fn put_off(&mut self, now: Instant) {
        if matches!(self.state, State::Running { since, .. } if now.saturating_duration_since(since) >= STEADY) {
            self.pause = FIRST_PAUSE;
        }
        self.state = State::Ended { due: now + self.pause };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// The helpers of an instance.
#[derive(Debug, Default)]
pub struct Helpers {
    all: Vec<Helper>,
    place: Option<Place>,
    connecting: Option<Connecting>,
}

impl Helpers {
    /// Whether an instance needs any.
    pub fn are_needed(network: &Network) -> bool {
        !network.published.is_empty() || network.egress.is_some() || matches!(network.link, Link::Pasta(_))
    }

    /// Opens what they will serve.
    ///
    /// # Errors
    /// A port is taken, or is not this user's to take.
    pub fn prepare(network: &Network) -> Result<Prepared, Failure> {
        Ok(Prepared { listening: listen(&network.published)? })
    }

    /// Begins to connect an instance with interfaces in a place, where a helper does that: it takes longer than the rest
    /// of the preparations, which go on meanwhile.
    ///
    /// # Errors
    /// No process can be made.
    pub fn connect(network: &Network, place: Place, dir: &InstanceDir) -> Result<Self, Failure> {
        let mut helpers = Self::default();
        if let Link::Pasta(pasta) = &network.link {
            let mut helper = Helper::new(Work::Connect(pasta.clone(), dir.pasta()));
            helpers.connecting = helper.start(&place)?;
            helpers.all.push(helper);
        }
        helpers.place = Some(place);
        Ok(helpers)
    }

    /// Waits until the instance is connected.
    ///
    /// # Errors
    /// It can't be.
    pub fn wait_connected(&mut self) -> Result<(), Failure> {
        self.connecting.take().map_or(Ok(()), |connecting| connecting.wait().map_err(Failure::setup))
    }

    /// Starts those that serve.
    ///
    /// # Errors
    /// No process can be made.
    pub fn serve(&mut self, prepared: Prepared, network: &Network) -> Result<(), Failure> {
        let Some(place) = &mut self.place else { return Ok(()) };
        let own = network.attachment().map(|attachment| attachment.address);
        let ports = (!prepared.listening.is_empty()).then_some(Service::Ports(prepared.listening, own));
        let egress =
            network.egress.clone().zip(place.proxy.take()).map(|(policy, proxy)| Service::Egress(proxy, policy));
        for service in ports.into_iter().chain(egress) {
            let mut helper = Helper::new(Work::Serve(service));
            helper.start(place)?;
            self.all.push(helper);
        }
        Ok(())
    }

    /// Takes note of a child that ended, which may be one of them.
    pub fn ended(&mut self, child: Pid, now: Instant) {
        for helper in &mut self.all {
            if matches!(helper.state, State::Running { pid, .. } if pid == child) {
                helper.put_off(now);
            }
        }
    }

    /// When the next one is to be started again.
    pub fn due(&self) -> Option<Instant> {
        let due = |helper: &Helper| match helper.state {
            State::Ended { due } => Some(due),
            State::Running { .. } => None,
        };
        self.all.iter().filter_map(due).min()
    }

    /// Starts those again whose time has come.
    pub fn restart(&mut self, now: Instant) {
        let Some(place) = &self.place else { return };
        for helper in &mut self.all {
            if matches!(helper.state, State::Ended { due } if due <= now) && helper.start(place).is_err() {
                helper.put_off(now);
            }
        }
    }

    /// Ends them, and lets go of what they served.
    pub fn end(&mut self) {
        for helper in std::mem::take(self).all {
            if let State::Running { process, .. } = helper.state {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    }
}

/// Forks a helper that keeps these descriptors and works in a place. Returns nothing in it.
fn fork(name: &CStr, kept: &[BorrowedFd<'_>], place: Option<&Place>) -> Result<Option<(Pid, OwnedFd)>, Failure> {
    let supervisor = Some(getpid());
    match sys::fork(Namespaces::default()).context("forking a helper")? {
        Fork::Parent { pid, pidfd } => Ok(Some((pid, pidfd))),
        Fork::Child => match settle(name, kept, place, supervisor) {
            Ok(()) => Ok(None),
            Err(_) => std::process::exit(1),
        },
    }
}

/// Becomes a user that owns nothing: what handles the bytes of strangers needs nothing of root.
fn become_helper() -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // A program that is root in an instance can become this user as well, and is counted with it.
    let most = getrlimit(Resource::Nproc).maximum;
    for maximum in [None, most] {
        if setrlimit(Resource::Nproc, Rlimit { current: maximum, maximum }).is_ok() {
            break;
        }
    }
    set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(HELPER), Gid::from_raw(HELPER));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Makes a process a helper.
fn settle(name: &CStr, kept: &[BorrowedFd<'_>], place: Option<&Place>, supervisor: Option<Pid>) -> std::io::Result<()> {
    let _ = rustix::thread::set_name(name);
    // The supervisor's own is a pipe whose end the controller waits for.
    let null = program::null()?;
    for number in 0..=2 {
        sys::replace_standard(number, null.as_fd())?;
    }
    // Nothing that is closed below may have an owner that drops it.
    drop(null);
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if let Some(place) = place {
        place.enter()?;
    }
    if place.is_none_or(|place| place.users.is_none()) {
        become_helper()?;
    }
    set_no_new_privs(true)?;
    // After the change of namespaces and users, which clears it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != supervisor {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    }
    sys::close_all_but(kept);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> Helper {
        Helper::new(Work::Serve(Service::Ports(Vec::new(), None)))
    }

    fn running(helper: &mut Helper, since: Instant) {
        let own = rustix::process::getpid();
        let process = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        helper.state = State::Running { pid: own, process, since };
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_while() {
        let (now, mut helper) = (Instant::now(), ended());
        let pauses: Vec<u128> = (0..9)
            .map(|_| {
                running(&mut helper, now);
                helper.put_off(now);
                let State::Ended { due } = helper.state else { panic!("it ended") };
                (due - now).as_millis()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        running(&mut helper, now);
        helper.put_off(now + STEADY);
        assert!(matches!(helper.state, State::Ended { due } if due == now + STEADY + FIRST_PAUSE));
    }

    #[test]
    fn only_what_ended_is_due() {
        let now = Instant::now();
        let mut helpers = Helpers { all: vec![ended(), ended()], ..Helpers::default() };
        for helper in &mut helpers.all {
            running(helper, now);
        }
        assert_eq!(helpers.due(), None);
        helpers.ended(Pid::from_raw(i32::MAX).unwrap(), now);
        assert_eq!(helpers.due(), None, "another child");
        helpers.ended(rustix::process::getpid(), now);
        assert_eq!(helpers.due(), Some(now + FIRST_PAUSE));
    }
}
