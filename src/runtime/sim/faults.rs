//! What goes wrong, and how often.

use std::time::Duration;

/// Probabilities (0 to 1) and lengths of what goes wrong. Every draw comes from the world's seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Each call takes up to this long, half of it before its effect on average.
    pub latency: Duration,
    /// A call takes up to [`Faults::slow_for`] longer.
    pub slow: f64,
    /// How much longer a slow call takes at most.
    pub slow_for: Duration,
    /// A call fails before it has any effect, in a way that trying again may help.
    pub fails: f64,
    /// A call is refused before it has any effect; the same call is refused again only by chance.
    pub refused: f64,
    /// A call has its effect and its answer is lost: the caller sees a timeout.
    pub answer_lost: f64,
    /// A call whose caller goes away has its effect all the same, maybe later, as with an engine that got the
    /// request. Otherwise it stops where it is.
    pub outlives_caller: f64,
    /// An instance that starts is to crash within [`Faults::crash_within`].
    pub crash: f64,
    /// How long after its start it crashes at most.
    pub crash_within: Duration,
    /// A connection to an instance is refused.
    pub refuses: f64,
    /// An event is never delivered, and nothing says so.
    pub event_lost: f64,
    /// An event is delivered twice.
    pub event_duplicated: f64,
    /// An event is held back for up to [`Faults::event_delay`], so that later ones overtake it.
    pub event_delayed: f64,
    /// How long an event is held back at most.
    pub event_delay: Duration,
    /// A call finds the runtime unreachable, and it stays so for up to [`Faults::outage_for`].
    pub outage: f64,
    /// How long the runtime stays unreachable at most.
    pub outage_for: Duration,
}

impl Faults {
    /// Nothing goes wrong and nothing takes time.
    pub const fn none() -> Self {
        Self {
            latency: Duration::ZERO,
            slow: 0.0,
            slow_for: Duration::ZERO,
            fails: 0.0,
            refused: 0.0,
            answer_lost: 0.0,
            outlives_caller: 0.0,
            crash: 0.0,
            crash_within: Duration::ZERO,
            refuses: 0.0,
            event_lost: 0.0,
            event_duplicated: 0.0,
            event_delayed: 0.0,
            event_delay: Duration::ZERO,
            outage: 0.0,
            outage_for: Duration::ZERO,
        }
    }

    /// Everything goes wrong far more often than on a bad day, but for refusals: those are final for a template, so
    /// nothing would converge.
    pub const fn harsh() -> Self {
        Self {
            latency: Duration::from_millis(400),
            slow: 0.05,
            slow_for: Duration::from_secs(20),
            fails: 0.08,
            refused: 0.0,
            answer_lost: 0.06,
            outlives_caller: 0.5,
            crash: 0.1,
            crash_within: Duration::from_secs(120),
            refuses: 0.2,
            event_lost: 0.1,
            event_duplicated: 0.1,
            event_delayed: 0.2,
            event_delay: Duration::from_secs(10),
            outage: 0.01,
            outage_for: Duration::from_secs(60),
        }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::none()
    }
}
