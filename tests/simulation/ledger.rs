//! Replays what happened, to know at each change what was there before it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use evenkeel::runtime::sim::{Change, What};
use evenkeel::state::{EndedBy, InstanceId, ServiceName, StopCause};

/// One instance as it stands in the replay.
#[derive(Debug, Clone)]
struct Account {
    id: InstanceId,
    runs: bool,
    ready: bool,
    /// When it became ready after its start, which the controller has to be told.
    became_ready: Option<DateTime<Utc>>,
    /// It was asked to end.
    asked: bool,
}

impl Account {
    const fn serves(&self) -> bool {
        self.ready && !self.asked
    }
}

/// Everything that lives in the replay.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: BTreeMap<String, Account>,
    /// Ready instances that were lost without the controller's doing and have no successor in their slot yet.
    debts: BTreeMap<(ServiceName, u32), u32>,
}

impl Ledger {
    pub fn runs(&self, runtime_id: &str) -> bool {
        self.accounts.get(runtime_id).is_some_and(|account| account.runs)
    }

    /// Whether it takes traffic and nobody asked it to end.
    pub fn serves(&self, runtime_id: &str) -> bool {
        self.accounts.get(runtime_id).is_some_and(Account::serves)
    }

    /// Whether that is so and the controller knows, which is told of what happened until then.
    pub fn is_known_to_serve(&self, runtime_id: &str, told: DateTime<Utc>) -> bool {
        let account = self.accounts.get(runtime_id).filter(|account| account.serves());
        account.is_some_and(|account| account.became_ready.is_none_or(|at| at <= told))
    }

    /// How many instances of a service do.
    pub fn serving(&self, service: &ServiceName) -> u32 {
        let of = |account: &&Account| account.id.service_name() == *service && account.serves();
        self.accounts.values().filter(of).count() as u32
    }

    /// Whether another instance that is not dead holds the same slot with the same revision.
    pub fn has_double(&self, runtime_id: &str) -> bool {
        let Some(account) = self.accounts.get(runtime_id) else { return false };
        let same = |id: &InstanceId| InstanceId { attempt: account.id.attempt, ..id.clone() } == account.id;
        self.accounts.iter().any(|(other, found)| other != runtime_id && same(&found.id))
    }

    /// Ready instances that a service lost without the controller's doing and that have no successor yet.
    pub fn debts(&self, service: &ServiceName) -> u32 {
        self.debts.iter().filter(|((of, _), _)| of == service).map(|(_, count)| count).sum()
    }

    /// The controller that asked crashed; what still runs was not killed.
    pub fn give_up_stops(&mut self) {
        for account in self.accounts.values_mut() {
            account.asked = false;
        }
    }

    pub fn take(&mut self, change: &Change) {
        let key = &change.runtime_id;
        let slot = (change.id.service_name(), change.id.slot);
        let served = self.serves(key);
        match &change.what {
            What::Created => {
                let account =
                    Account { id: change.id.clone(), runs: false, ready: false, became_ready: None, asked: false };
                self.accounts.insert(key.clone(), account);
            }
            What::Started { ready } => {
                if let Some(account) = self.accounts.get_mut(key) {
                    *account = Account { runs: true, ready: *ready, asked: false, ..account.clone() };
                }
                if *ready {
                    self.settle(slot);
                }
            }
            What::Ready => {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.ready = true;
                    account.became_ready = Some(change.at);
                }
                self.settle(slot);
            }
            What::NotReady => {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.ready = false;
                }
                self.lose(slot, served);
            }
            What::StopAsked(cause) => {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.asked = true;
                }
                // Checks failed, which is none of the controller's doing.
                self.lose(slot, served && *cause == StopCause::Unhealthy);
            }
            What::Ended(exit) => {
                self.accounts.remove(key);
                self.lose(slot, served && exit.ended_by == EndedBy::Itself);
            }
            What::Frozen => {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.ready = false;
                }
                self.lose(slot, served);
            }
            What::Resumed => {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.ready = true;
                }
                self.settle(slot);
            }
            What::Removed { asked, .. } => {
                self.accounts.remove(key);
                self.lose(slot, served && !asked);
            }
        }
    }

    fn lose(&mut self, slot: (ServiceName, u32), lost: bool) {
        if lost {
            *self.debts.entry(slot).or_default() += 1;
        }
    }

    fn settle(&mut self, slot: (ServiceName, u32)) {
        if let Some(debt) = self.debts.get_mut(&slot) {
            *debt = debt.saturating_sub(1);
        }
    }
}
