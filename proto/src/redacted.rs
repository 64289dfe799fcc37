//! Messages that hold secrets print without them: what is logged by accident gives nothing away.

use std::fmt;

use crate::v1::{BasicUser, Webhook};

/// In place of a secret.
const HIDDEN: &str = "***";

impl fmt::Debug for BasicUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicUser").field("name", &self.name).field("hash", &HIDDEN).finish()
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<_> = self.secrets.iter().map(|_| HIDDEN).collect();
        f.debug_struct("Webhook")
            .field("kind", &self.kind())
            .field("secrets", &secrets)
            .field("max_body", &self.max_body)
            .field("header", &self.header)
            .field("hash", &self.hash())
            .field("base64", &self.base64)
            .field("prefix", &self.prefix)
            .field("timestamp_header", &self.timestamp_header)
            .field("tolerance_s", &self.tolerance_s)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T20: secrets in logs.
    #[test]
    fn t20_secrets_of_a_policy_are_not_printed() {
        let user = BasicUser { name: "ann".into(), hash: "canary".into() };
        let webhook = Webhook { secrets: vec!["canary".into()], ..Default::default() };
        let printed = format!("{user:?} {webhook:?}");
        assert!(printed.contains("ann") && !printed.contains("canary"), "{printed}");
    }
}
