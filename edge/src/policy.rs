//! A tunnel's policy as the edge follows it: the decisions, which are in
//! [`uniroute_shared::policy`], and what they need here (password checks, timers, compression, the
//! owner's error page). One is made for each tunnel that wants something, and none for the everyday
//! tunnel.
//!
//! How a request uses it:
//!
//! ```text
//! let Some(policy) = &target.policy else { as ever };
//! policy.rules().admit(&head, seen)            Redirect, Refuse, or Pass:
//!   pass.credentials -> policy.check_password().await
//!   pass.whole_body  -> read it, policy.rules().check_webhook()
//! let wish = Wish::of(&head);                  before the head is rewritten
//! policy.rules().rewrite_request(&mut head, pass.route, &public), HttpOpen.route = pass.route.number
//! policy.clock(now)                            moved with every byte; event streams are spared
//! policy.rules().rewrite_response(&mut fields, pass.route, &public)
//! policy.compressor(wish, status, &mut fields) push for each piece of the body, then finish
//! ```

pub(crate) mod compress;
pub(crate) mod error_page;
pub(crate) mod passwords;
pub(crate) mod timeouts;

use std::{net::IpAddr, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use uniroute_proto::{Message as _, v1};
use uniroute_shared::{
    code::Code,
    message::Fields,
    policy::{Policy as Rules, PolicyError, basic::Credentials},
};

use self::{
    compress::{Compressor, MAX_COMPRESSORS, Wish},
    error_page::ErrorPage,
    passwords::{Checks, Passwords},
    timeouts::{Clock, Timeouts},
};

/// What all policies of an edge together may take, in KiB. One is a few hundred bytes, and with an
/// error page up to 256 KiB, the longest control frame.
const MAX_SIZE: usize = 256 * 1024;

/// What the policies of one edge share: room for what costs much.
#[derive(Debug)]
pub(crate) struct Common {
    checks: Checks,
    compressors: Arc<Semaphore>,
    /// KiB.
    room: Arc<Semaphore>,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            checks: Checks::default(),
            compressors: Arc::new(Semaphore::new(MAX_COMPRESSORS)),
            room: Arc::new(Semaphore::new(MAX_SIZE)),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: Rules,
    passwords: Option<Passwords>,
    timeouts: Timeouts,
    compression: bool,
    error_page: Option<ErrorPage>,
    common: Arc<Common>,
    _room: OwnedSemaphorePermit,
}

/// Why a tunnel can't have its policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyRefused {
    #[error(transparent)]
    Invalid(#[from] PolicyError),
    #[error("the edge holds as many settings of tunnels as it may")]
    NoRoom,
}

impl Policy {
    /// Checks everything in it. `None`: it says nothing.
    ///
    /// # Errors
    /// [`PolicyRefused`], naming the first key that is wrong.
    pub(crate) fn compile(
        policy: Option<&v1::HttpPolicy>,
        common: &Arc<Common>,
    ) -> Result<Option<Arc<Self>>, PolicyRefused> {
        let Some(policy) = policy.filter(|policy| **policy != v1::HttpPolicy::default()) else {
            return Ok(None);
        };
        let rules = Rules::compile(policy)?;
        let size = u32::try_from(policy.encoded_len() / 1024 + 1).unwrap_or(u32::MAX);
        let room = Arc::clone(&common.room).try_acquire_many_owned(size);
        let passwords = rules.basic().map(Passwords::new);
        Ok(Some(Arc::new(Self {
            rules,
            passwords,
            timeouts: Timeouts::of(policy),
            compression: policy.compression,
            error_page: ErrorPage::new(&policy.error_page),
            common: Arc::clone(common),
            _room: room.map_err(|_| PolicyRefused::NoRoom)?,
        })))
    }

    /// The pure decisions.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the password is the right one. The first time takes long.
    ///
    /// # Errors
    /// [`Code::PASSWORD_NEEDED`], [`Code::TOO_MANY_FAILURES`] or [`Code::PASSWORD_CHECKS_BUSY`].
    pub(crate) async fn check_password(
        &self,
        given: Credentials,
        visitor: IpAddr,
    ) -> Result<(), &'static Code> {
        match &self.passwords {
            Some(passwords) => passwords.check(&self.common.checks, given, visitor).await,
            None => Ok(()),
        }
    }

    /// A request's clock; `None`: it may take for ever.
    pub(crate) fn clock(&self, now: Instant) -> Option<Clock> {
        self.timeouts.clock(now)
    }

    /// Makes the fields of an answer those of a compressed one, if it is to be compressed. To be
    /// called last, and not for HEAD or upgrades.
    pub(crate) fn compressor(
        &self,
        wish: Wish,
        status: u16,
        fields: &mut Fields,
    ) -> Option<Compressor> {
        if !self.compression {
            return None;
        }
        compress::compressor(wish, status, fields, &self.common.compressors)
    }

    /// What browsers get instead of our page for `code`, if the owner has something.
    pub(crate) fn error_page(&self, code: &Code) -> Option<&ErrorPage> {
        self.error_page.as_ref().filter(|_| error_page::is_for(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_that_wants_nothing_has_no_policy() {
        let common = Arc::new(Common::default());
        assert!(Policy::compile(None, &common).unwrap().is_none());
        let empty = v1::HttpPolicy::default();
        assert!(Policy::compile(Some(&empty), &common).unwrap().is_none());
        let some = v1::HttpPolicy { compression: true, ..empty };
        assert!(Policy::compile(Some(&some), &common).unwrap().is_some());
    }

    #[test]
    fn all_policies_together_have_a_bound() {
        let common = Arc::new(Common { room: Arc::new(Semaphore::new(100)), ..Common::default() });
        let page = vec![b'x'; 60 * 1024].into();
        let policy = v1::HttpPolicy { error_page: page, ..Default::default() };
        let first = Policy::compile(Some(&policy), &common).unwrap();
        let second = Policy::compile(Some(&policy), &common);
        assert!(matches!(second, Err(PolicyRefused::NoRoom)));
        drop(first);
        assert!(Policy::compile(Some(&policy), &common).is_ok());
    }

    #[tokio::test]
    async fn nobody_is_asked_where_there_are_no_users() {
        let common = Arc::new(Common::default());
        let policy = v1::HttpPolicy { compression: true, ..Default::default() };
        let policy = Policy::compile(Some(&policy), &common).unwrap().unwrap();
        let given = Credentials { name: vec![], password: vec![] };
        assert!(policy.check_password(given, IpAddr::from([127, 0, 0, 1])).await.is_ok());
        assert!(policy.clock(Instant::now()).is_none());
        assert!(policy.error_page(&Code::UPSTREAM_REFUSED).is_none());
    }
}
