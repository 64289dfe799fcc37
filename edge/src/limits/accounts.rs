//! Users as the data path knows them: what their plans allow, and how much of it is used. One for
//! each user with a session here, shared by all his tunnels.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{Gate, bandwidth::Bandwidth};
use crate::store::plans::PlanLimits;

/// One user.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) user: Uuid,
    pub(crate) gate: Gate,
    pub(crate) bandwidth: Bandwidth,
    allowance: Mutex<PlanLimits>,
    /// Bytes that may still be moved this month; `u64::MAX`: any number. Set from the store's count
    /// every few seconds, and taken from in between.
    transfer_left: AtomicU64,
}

impl Account {
    fn new(user: Uuid, allowance: &PlanLimits) -> Self {
        let account = Self {
            user,
            gate: Gate::default(),
            bandwidth: Bandwidth::new(None),
            allowance: Mutex::default(),
            transfer_left: AtomicU64::new(u64::MAX),
        };
        account.allow(allowance);
        account
    }

    /// The plan, or what it says, has changed.
    pub(crate) fn allow(&self, allowance: &PlanLimits) {
        let mut now = self.allowance.lock();
        if now.requests_per_second != allowance.requests_per_second {
            self.gate.set(allowance.requests_per_second, 1.0);
        }
        self.bandwidth.set(allowance.bandwidth_bytes_per_second);
        if allowance.transfer_bytes_per_month.is_none() {
            self.transfer_left.store(u64::MAX, Ordering::Relaxed);
        }
        *now = *allowance;
    }

    pub(crate) fn allowance(&self) -> PlanLimits {
        *self.allowance.lock()
    }

    /// Whether there is anything left to move this month.
    pub(crate) fn may_transfer(&self) -> bool {
        self.transfer_left.load(Ordering::Relaxed) > 0
    }

    /// Counts bytes that were moved.
    pub(crate) fn transferred(&self, bytes: u64) {
        let left = self.transfer_left.load(Ordering::Relaxed);
        if left != u64::MAX {
            // Two at once may take the same bytes once: the store's count sets it right.
            self.transfer_left.store(left.saturating_sub(bytes), Ordering::Relaxed);
        }
    }

    /// Whether there is a limit of which nothing is known yet.
    pub(crate) fn wants_usage(&self) -> bool {
        self.allowance().transfer_bytes_per_month.is_some()
            && self.transfer_left.load(Ordering::Relaxed) == u64::MAX
    }

    /// What the store has counted for this month, on all edges.
    pub(crate) fn set_transferred(&self, used: u64) {
        if let Some(limit) = self.allowance.lock().transfer_bytes_per_month {
            self.transfer_left.store(limit.saturating_sub(used), Ordering::Relaxed);
        }
    }
}

/// Users with a session here.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    known: Mutex<HashMap<Uuid, Weak<Account>>>,
}

impl Accounts {
    /// The account of `user`, who is allowed so much.
    pub(crate) fn enter(&self, user: Uuid, allowance: &PlanLimits) -> Arc<Account> {
        let mut known = self.known.lock();
        if let Some(account) = known.get(&user).and_then(Weak::upgrade) {
            account.allow(allowance);
            return account;
        }
        // As many as there are sessions, at most: those that have gone make room.
        known.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account::new(user, allowance));
        known.insert(user, Arc::downgrade(&account));
        account
    }

    pub(crate) fn get(&self, user: &Uuid) -> Option<Arc<Account>> {
        self.known.lock().get(user).and_then(Weak::upgrade)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Account>> {
        self.known.lock().values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_one_for_all_sessions_and_follows_its_plan() {
        let (accounts, user) = (Accounts::default(), Uuid::now_v7());
        let mut plan = PlanLimits { transfer_bytes_per_month: Some(100), ..PlanLimits::default() };
        let account = accounts.enter(user, &plan);
        assert!(Arc::ptr_eq(&account, &accounts.enter(user, &plan)));
        account.set_transferred(90);
        account.transferred(20);
        assert!(!account.may_transfer());
        plan.transfer_bytes_per_month = Some(1000);
        account.allow(&plan);
        account.set_transferred(110);
        assert!(account.may_transfer());
        plan.transfer_bytes_per_month = None;
        account.allow(&plan);
        account.set_transferred(u64::MAX);
        assert!(account.may_transfer());
        drop(account);
        assert!(accounts.get(&user).is_none());
    }
}
