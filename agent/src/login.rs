//! Whether an edge takes a token, found out by a handshake that gives no tunnel.

use uniroute_shared::id::AgentId;

use crate::{
    Agent, AgentError, Settings, TunnelError, TunnelSettings, slot::Slot, upstream::TargetError,
};

/// No tunnel has this name. An edge refuses a handshake that asks for no tunnel, before it looks at
/// the token; one that asks for this it refuses only this, after it.
const NO_NAME: &str = "-";

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

/// Shakes hands with the edge of `settings`, gets no tunnel, and leaves again. The edge's name, if it
/// takes the token.
///
/// # Errors
/// [`LoginError`]
pub async fn check_login(settings: Settings) -> Result<String, LoginError> {
    let target = "localhost:1".parse().map_err(|error: TargetError| TunnelError::from(error))?;
    let nameless =
        TunnelSettings { name: Some(NO_NAME.to_owned()), ..TunnelSettings::http("login", target) };
    // Not this machine's own id: an agent that runs here is to keep its session.
    let settings = Settings {
        tunnels: vec![nameless],
        sessions: 1,
        fail_fast: true,
        agent_id: AgentId::random(),
        token_file: None,
        ..settings
    };
    let (agent, _events) = Agent::new(settings)?;
    Ok(Slot::new(agent.shared, 0).try_once().await?)
}
