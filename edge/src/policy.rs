//! A tunnel's policy as the edge follows it: the decisions, which are in
//! [`uniroute_shared::policy`], and what they need here (password checks, timers, compression, the
//! owner's error page). One is made for each tunnel that wants something, and none for the everyday
//! tunnel.
//!
//! `ingress/guard.rs` takes a request through it.

pub(crate) mod compress;
pub(crate) mod error_page;
pub(crate) mod passwords;
pub(crate) mod timeouts;

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::digest::{Digest, SHA256, digest};
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

use crate::ingress::error::ProxyError;

use self::{
    compress::{Compressor, MAX_COMPRESSORS, Wish},
    error_page::ErrorPage,
    passwords::{Checks, Passwords},
    timeouts::{Clock, Timeouts},
};

/// What all policies of an edge together may take, in KiB. One is a few hundred bytes, and with an
/// error page up to 256 KiB, the longest control frame.
const MAX_SIZE: usize = 256 * 1024;

/// What all bodies together may take that are held whole to be checked, in KiB.
const MAX_BODIES: usize = 256 * 1024;

/// What the policies of one edge share: room for what costs much.
#[derive(Debug)]
pub(crate) struct Common {
    checks: Checks,
    compressors: Arc<Semaphore>,
    /// KiB.
    room: Arc<Semaphore>,
    /// KiB.
    bodies: Arc<Semaphore>,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            checks: Checks::default(),
            compressors: Arc::new(Semaphore::new(MAX_COMPRESSORS)),
            room: Arc::new(Semaphore::new(MAX_SIZE)),
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
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
    /// Of everything in it.
    digest: Digest,
    _room: OwnedSemaphorePermit,
}

/// Why a tunnel can't have its policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyRefused {
    #[error(transparent)]
    Invalid(#[from] PolicyError),
    #[error("only HTTP tunnels have requests to do something with")]
    NotHttp,
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
            digest: digest(&SHA256, &policy.encode_to_vec()),
            _room: room.map_err(|_| PolicyRefused::NoRoom)?,
        })))
    }

    /// Whether both say the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.digest.as_ref() == other.digest.as_ref()
    }

    /// Room for a body that is held whole.
    ///
    /// # Errors
    /// [`Code::BODIES_BUSY`].
    pub(crate) fn room_for_body(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ProxyError> {
        let size = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.common.bodies).try_acquire_many_owned(size);
        room.map_err(|_| ProxyError::Access(&Code::BODIES_BUSY))
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
