//! Which addresses visitors may come from.

use std::net::IpAddr;

use super::{PolicyError, Refusal};
use crate::network::{Network, Networks};

/// Most networks of each list.
pub const MAX_NETWORKS: usize = 1_024;

/// The two lists; `deny` goes over `allow`.
#[derive(Debug, Default)]
pub(super) struct Access {
    allow: Networks,
    deny: Networks,
}

impl Access {
    pub(super) fn compile(allow: &[String], deny: &[String]) -> Result<Self, PolicyError> {
        Ok(Self { allow: networks("allow", allow)?, deny: networks("deny", deny)? })
    }

    pub(super) fn check(&self, visitor: IpAddr) -> Result<(), Refusal> {
        if self.deny.contains(visitor) {
            return Err(Refusal::Denied);
        }
        if !self.allow.is_empty() && !self.allow.contains(visitor) {
            return Err(Refusal::NotAllowed);
        }
        Ok(())
    }
}

fn networks(key: &str, texts: &[String]) -> Result<Networks, PolicyError> {
    PolicyError::at_most(key, texts.len(), MAX_NETWORKS)?;
    let network = |(index, text): (usize, &String)| {
        text.parse::<Network>()
            .map_err(|error| PolicyError::new(format!("{key}[{index}]"), error.to_string()))
    };
    texts.iter().enumerate().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allow: &[&str], deny: &[&str], visitor: &str) -> Result<(), Refusal> {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let access = Access::compile(&owned(allow), &owned(deny)).unwrap();
        access.check(visitor.parse().unwrap())
    }

    #[test]
    fn deny_goes_over_allow_and_no_list_lets_all_in() {
        assert_eq!(check(&[], &[], "203.0.113.9"), Ok(()));
        assert_eq!(check(&["203.0.113.0/24"], &[], "::ffff:203.0.113.9"), Ok(()));
        assert_eq!(check(&["203.0.113.0/24"], &[], "203.0.114.9"), Err(Refusal::NotAllowed));
        assert_eq!(check(&["203.0.113.0/24"], &[], "::1"), Err(Refusal::NotAllowed));
        let deny = &["203.0.113.9"];
        assert_eq!(check(&["203.0.113.0/24"], deny, "203.0.113.9"), Err(Refusal::Denied));
        assert_eq!(check(&[], deny, "::ffff:203.0.113.9"), Err(Refusal::Denied));
        assert_eq!(check(&[], deny, "203.0.113.8"), Ok(()));
    }

    #[test]
    fn a_wrong_network_is_named() {
        let error = Access::compile(&["::/0".into(), "home".into()], &[]).unwrap_err();
        assert_eq!(error.key, "allow[1]");
        let many = vec!["::1".to_owned(); MAX_NETWORKS + 1];
        assert_eq!(Access::compile(&[], &many).unwrap_err().key, "deny");
    }
}
