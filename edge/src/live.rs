//! The REST API of this edge: its use cases, with what is known here and now.

use std::{
    net::IpAddr,
    sync::{Arc, Weak},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tracing::debug;
use uniroute_shared::{code::Code, id::TunnelId};
use uuid::Uuid;

use crate::{
    PublicUrl, Shared, abuse,
    abuse::Rule,
    api::Api,
    auth::{agent_tokens::TunnelKind, passwords::Passwords, secret::Secret},
    changes,
    registry::ports::Kind,
    services::{Ban, Live, Services, Settings, Signup, Totals},
    store::Timestamp,
};

/// Sets the API up.
pub(crate) fn serve_api(edge: &Arc<Shared>, signup: Signup, secret: Secret) {
    let public = Arc::clone(&edge.public);
    let PublicUrl { scheme, domain, port, .. } = &*public;
    let settings = Settings {
        signup,
        issuer: format!("{scheme}://{domain}{port}"),
        domain: domain.clone(),
        quarantine: edge.quarantine,
        url_of: {
            let public = Arc::clone(&public);
            Box::new(move |kind, name, port| public.of(name, kind_of(kind), port))
        },
    };
    let live = Arc::new(Here(Arc::downgrade(edge)));
    let weak = Arc::downgrade(edge);
    let suspicion = Arc::new(move |address: IpAddr, _: &'static str| {
        if let Some(edge) = weak.upgrade() {
            edge.abuse.strike(&edge, Rule::LoginGuessing, address);
        }
    });
    let (store, events) = (edge.store.clone(), edge.events.clone());
    let passwords = Passwords::new();
    let services = Services::new(store, events, live, settings, secret, passwords, suspicion);
    let _ = edge.api.set(Api::new(services));
}

fn kind_of(kind: TunnelKind) -> Kind {
    match kind {
        TunnelKind::Http => Kind::Http,
        TunnelKind::Tls => Kind::Tls,
        TunnelKind::Tcp => Kind::Tcp,
        TunnelKind::Udp => Kind::Udp,
    }
}

/// This edge, as its API sees it.
struct Here(Weak<Shared>);

impl Live for Here {
    fn is_online(&self, tunnel: Uuid) -> BoxFuture<'_, bool> {
        let edge = self.0.upgrade();
        async move {
            let Some(edge) = edge else { return false };
            if edge.registry.serving(TunnelId::from(tunnel)).is_some() {
                return true;
            }
            match edge.state.sessions(tunnel).await {
                Ok(sessions) => !sessions.is_empty(),
                Err(error) => {
                    debug!(%error, "sessions of other edges are not known");
                    false
                }
            }
        }
        .boxed()
    }

    fn totals(&self, tunnel: Uuid) -> BoxFuture<'_, Option<Totals>> {
        let edge = self.0.upgrade();
        async move {
            let edge = edge?;
            let totals = edge.state.totals(tunnel).await.ok()?;
            Some(Totals {
                requests: totals.requests,
                errors: totals.errors,
                bytes_in: totals.bytes_in,
                bytes_out: totals.bytes_out,
            })
        }
        .boxed()
    }

    fn cut_session(&self, session: Uuid) {
        if let Some(edge) = self.0.upgrade() {
            changes::cut(&edge, |live| Uuid::from(live.id) == session, &Code::SESSION_CUT);
        }
    }

    fn bans(&self) -> BoxFuture<'_, Vec<Ban>> {
        let edge = self.0.upgrade();
        async move {
            let Some(edge) = edge else { return Vec::new() };
            edge.abuse.learn(&edge).await;
            let ban = |(address, ban): (IpAddr, abuse::Ban)| Ban {
                address,
                rule: ban.rule.as_str().to_owned(),
                until: Timestamp::now().plus(ban.left()),
            };
            edge.abuse.all().into_iter().map(ban).collect()
        }
        .boxed()
    }

    fn lift(&self, address: IpAddr) -> BoxFuture<'_, bool> {
        let edge = self.0.upgrade();
        async move {
            match edge {
                Some(edge) => edge.abuse.lift(&edge, address).await,
                None => false,
            }
        }
        .boxed()
    }

    fn state_is_well(&self) -> bool {
        self.0.upgrade().is_none_or(|edge| edge.state.is_well())
    }
}
