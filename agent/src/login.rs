//! Whether an edge takes a token, found out by a session that serves nothing.

use uniroute_shared::id::AgentId;

use crate::{Agent, AgentError, Settings, TunnelError, TunnelSettings, slot::Slot};

/// A name that no edge gives to anybody.
const RESERVED: &str = "www";

/// Why a token can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The settings themselves.
    #[error(transparent)]
    Settings(#[from] TunnelError),
    /// The edge is not there, or does not take the token.
    #[error(transparent)]
    Edge(#[from] AgentError),
}

/// Shakes hands with the edge of `settings` as an agent that can't get its tunnel, and leaves again:
/// an edge gives no session to one that asks for none. The edge's name, if it takes the token.
///
/// # Errors
/// [`LoginError`]
pub async fn check_login(settings: Settings) -> Result<String, LoginError> {
    let target = "1".parse().map_err(TunnelError::from)?;
    let mut refused = TunnelSettings::http("login", target);
    refused.name = Some(RESERVED.to_owned());
    // Not this machine's own id: an agent that runs here is to keep its session.
    let settings = Settings {
        tunnels: vec![refused],
        fail_fast: true,
        agent_id: AgentId::random(),
        token_file: None,
        ..settings
    };
    let (agent, _events) = Agent::new(settings)?;
    Ok(Slot::new(agent.shared, 0).try_once().await?)
}
