//! A budget of bytes for streams that are read ahead and consumed one after another.
//!
//! - The stream whose turn it is may hold `current_bytes`; all streams ahead of it together may hold `ahead_bytes`. So
//!   memory does not grow with the number of streams, and streams ahead never use the share of the one being consumed.
//! - An item larger than its limit is admitted alone once its stream's turn has come.
//! - Acquiring blocks; releasing does not, so a permit may be dropped on any thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::lock::lock;

/// What streams may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Bytes of the stream being consumed, and of what is left of those before it.
    pub current_bytes: u64,
    /// Bytes of all streams ahead of it together.
    pub ahead_bytes: u64,
}

/// A budget shared by streams.
#[derive(Debug)]
pub struct Budget(Arc<Shared>);

/// One stream's account in a budget. Clones are the same account.
#[derive(Debug, Clone)]
pub struct Account {
    shared: Arc<Shared>,
    id: u64,
}

/// Bytes held; released on drop.
#[derive(Debug)]
pub struct Permit {
    account: Account,
    bytes: u64,
}

#[derive(Debug)]
struct Shared {
    limits: BudgetLimits,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    /// Streams that are open or still hold bytes: a handful.
    accounts: BTreeMap<u64, AccountState>,
}

#[derive(Debug, Default)]
struct AccountState {
    held_bytes: u64,
    /// Whether its turn has come.
    current: bool,
    closed: bool,
}

impl Budget {
    /// An unused budget.
    pub fn new(limits: BudgetLimits) -> Self {
        Self(Arc::new(Shared { limits, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// An account for one more stream, ahead of the others.
    pub fn account(&self) -> Account {
        let mut state = self.0.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.accounts.insert(id, AccountState::default());
        Account { shared: Arc::clone(&self.0), id }
    }
}

impl Account {
    /// Wait until `bytes` fit, and hold them; `None` once the account is closed.
    pub fn acquire(&self, bytes: u64) -> Option<Permit> {
        let mut state = self.shared.lock();
        loop {
            let account = state.accounts.get(&self.id).filter(|account| !account.closed)?;
            if state.admits(account.current, bytes, self.shared.limits) {
                break;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.change(self.id, |account| account.held_bytes += bytes);
        Some(Permit { account: self.clone(), bytes })
    }

    /// Wait until the stream's turn has come, and return `true`; `false` once the account is closed.
    pub fn wait_for_turn(&self) -> bool {
        let mut state = self.shared.lock();
        loop {
            match state.accounts.get(&self.id) {
                Some(account) if !account.closed && !account.current => {}
                account => return account.is_some_and(|account| !account.closed),
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the stream will not be consumed.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().accounts.get(&self.id).is_none_or(|account| account.closed)
    }

    /// Begin the stream's turn.
    pub fn make_current(&self) {
        self.update(|account| account.current = true);
    }

    /// End all waits, now and later: the stream will not be consumed.
    pub fn close(&self) {
        self.update(|account| account.closed = true);
    }

    fn update(&self, change: impl FnOnce(&mut AccountState)) {
        self.shared.lock().change(self.id, change);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn admits(&self, current: bool, bytes: u64, limits: BudgetLimits) -> bool {
        let alike = self.accounts.values().filter(|account| account.current == current);
        let held_bytes: u64 = alike.map(|account| account.held_bytes).sum();
        match current {
            true => held_bytes == 0 || held_bytes + bytes <= limits.current_bytes,
            false => held_bytes + bytes <= limits.ahead_bytes,
        }
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut AccountState)) {
        // a closed account that holds nothing has been removed
        let Some(account) = self.accounts.get_mut(&id) else { return };
        change(account);
        if account.closed && account.held_bytes == 0 {
            self.accounts.remove(&id);
        }
    }
}

impl Shared {
    /// No code panics while it holds the lock, so the state is correct even if the lock is poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.update(|account| account.held_bytes -= self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BudgetLimits = BudgetLimits { current_bytes: 10, ahead_bytes: 4 };

    #[test]
    fn a_stream_waits_for_its_turn_or_its_end() {
        let budget = Budget::new(LIMITS);
        let (first, second) = (budget.account(), budget.account());
        let waiting = [first.clone(), second.clone()]
            .map(|account| std::thread::spawn(move || (account.wait_for_turn(), account.is_closed())));
        first.make_current();
        second.close();
        let found = waiting.map(|thread| thread.join().expect("no panic"));
        assert_eq!(found, [(true, false), (false, true)]);
    }

    fn current(budget: &Budget) -> Account {
        let account = budget.account();
        account.make_current();
        account
    }

    /// Whether `account` gets `bytes` only after `release`.
    fn waits_for(account: &Account, bytes: u64, release: impl FnOnce()) -> bool {
        let fits = {
            let state = account.shared.lock();
            state.admits(state.accounts[&account.id].current, bytes, account.shared.limits)
        };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| account.acquire(bytes));
            release();
            !fits && waiting.join().expect("no panic").is_some()
        })
    }

    #[test]
    fn an_item_larger_than_the_budget_is_admitted_alone() {
        let budget = Budget::new(LIMITS);
        let account = current(&budget);
        let large = account.acquire(25).expect("open");
        assert!(waits_for(&account, 1, || drop(large)));
    }

    #[test]
    fn a_full_budget_admits_nothing_until_bytes_are_released() {
        let budget = Budget::new(LIMITS);
        let account = current(&budget);
        let first = account.acquire(8).expect("open");
        assert!(waits_for(&account, 5, || drop(first)));
    }

    #[test]
    fn streams_ahead_share_a_limit_and_leave_the_current_one_its_own() {
        let budget = Budget::new(LIMITS);
        let (now, next, later) = (current(&budget), budget.account(), budget.account());
        let _ahead = next.acquire(3).expect("open");
        let _now = now.acquire(10).expect("all of the current stream's limit is left");
        assert!(waits_for(&later, 2, || next.make_current()));
    }

    #[test]
    fn bytes_held_ahead_still_count_when_the_turn_comes() {
        let budget = Budget::new(LIMITS);
        let next = budget.account();
        let ahead = next.acquire(4).expect("open");
        next.make_current();
        assert!(waits_for(&next, 7, || drop(ahead)));
    }

    #[test]
    fn a_large_item_of_a_stream_ahead_waits_for_its_turn() {
        let budget = Budget::new(LIMITS);
        let next = budget.account();
        assert!(waits_for(&next, 5, || next.make_current()));
    }

    #[test]
    fn closing_ends_waits_and_held_bytes_stay_counted() {
        let budget = Budget::new(LIMITS);
        let (now, next) = (current(&budget), current(&budget));
        let held = now.acquire(10).expect("open");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| now.acquire(1).is_none());
            now.close();
            assert!(waiting.join().expect("no panic"));
        });
        assert!(waits_for(&next, 1, || drop(held)));
        assert_eq!(budget.0.lock().accounts.len(), 1, "a closed account that holds nothing is removed");
    }
}
