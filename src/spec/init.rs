//! Steps before each start: what they do, from what was written.

use std::time::Duration;

use super::{HumanDuration, InitStep};

/// Longest time of one try of a step where none is written.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Time between two looks of a wait where none is written: soon enough that nobody notices, rare enough that a server
/// which is coming up does not either.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitAction {
    /// Waits until a connection is taken.
    WaitTcp {
        /// Name or address; a service of the deployment where it is the name of one.
        host: String,
        /// Port there.
        port: u16,
        /// Time between two looks.
        interval: Duration,
    },
    /// Waits until a GET is answered with this status.
    WaitHttp {
        /// Where to; the host may be a service of the deployment.
        url: String,
        /// The status.
        expect_status: u16,
        /// Time between two looks.
        interval: Duration,
    },
    /// Runs a shell command in a fresh instance of the image.
    Run {
        /// The command.
        command: String,
        /// Directory to run it in; the instance's when absent.
        workdir: Option<String>,
    },
}

impl InitStep {
    /// What it does; none where it is not as [`parse()`](super::parse()) asks for.
    pub fn action(&self) -> Option<InitAction> {
        let text = |name: &str| match self.with.get(name)? {
            serde_json::Value::String(text) => Some(text.clone()),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let interval = || match text("interval") {
            Some(text) => text.parse().map(HumanDuration::get).ok(),
            None => Some(INTERVAL),
        };
        Some(match self.uses.as_str() {
            "init.wait_tcp" => {
                InitAction::WaitTcp { host: text("host")?, port: text("port")?.parse().ok()?, interval: interval()? }
            }
            "init.wait_http" => InitAction::WaitHttp {
                url: text("url")?,
                expect_status: text("expect_status").map_or(Some(200), |status| status.parse().ok())?,
                interval: interval()?,
            },
            "init.run" => InitAction::Run { command: text("command")?, workdir: text("workdir") },
            _ => return None,
        })
    }

    /// How often it is tried.
    pub fn tries(&self) -> u32 {
        self.retry.unwrap_or(0).saturating_add(1)
    }

    /// Longest time of one try.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(TIMEOUT, HumanDuration::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(text: &str) -> Option<InitAction> {
        serde_yaml::from_str::<InitStep>(&format!("{{id: a, {text}}}")).unwrap().action()
    }

    #[test]
    fn steps_are_read_with_their_defaults() {
        let second = Duration::from_secs(1);
        let tcp = |port, interval| Some(InitAction::WaitTcp { host: "db".to_owned(), port, interval });
        assert_eq!(action("uses: init.wait_tcp, with: {host: db, port: 5432}"), tcp(5432, second));
        assert_eq!(action("uses: init.wait_tcp, with: {host: db, port: '1', interval: 2s}"), tcp(1, 2 * second));
        let http = |expect_status| {
            Some(InitAction::WaitHttp { url: "http://db/".to_owned(), expect_status, interval: second })
        };
        assert_eq!(action("uses: init.wait_http, with: {url: 'http://db/'}"), http(200));
        assert_eq!(action("uses: init.wait_http, with: {url: 'http://db/', expect_status: 204}"), http(204));
        let run = |workdir: Option<&str>| {
            Some(InitAction::Run { command: "make it".to_owned(), workdir: workdir.map(str::to_owned) })
        };
        assert_eq!(action("uses: init.run, with: {command: make it}"), run(None));
        assert_eq!(action("uses: init.run, with: {command: make it, workdir: /srv}"), run(Some("/srv")));
        assert_eq!(action("uses: init.wait_tcp, with: {host: db, port: 70000}"), None);
        assert_eq!(action("uses: init.dance"), None);
    }
}
