//! Whether an edge takes a token, found out by a session without a tunnel.

use uniroute_shared::id::AgentId;

use crate::{Agent, AgentError, Settings, TunnelError, slot::Slot};

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

/// Shakes hands with the edge of `settings` as an agent without a tunnel, and leaves again. The
/// edge's name, if it takes the token.
///
/// # Errors
/// [`LoginError`]
pub async fn check_login(settings: Settings) -> Result<String, LoginError> {
    // Not this machine's own id: an agent that runs here is to keep its session.
    let settings = Settings {
        tunnels: Vec::new(),
        fail_fast: true,
        agent_id: AgentId::random(),
        token_file: None,
        ..settings
    };
    let (agent, _events) = Agent::new(settings)?;
    Ok(Slot::new(agent.shared, 0).try_once().await?)
}
