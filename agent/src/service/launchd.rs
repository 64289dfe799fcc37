//! launchd: the property list, and how it is loaded.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Action, Call, Scope, Service, call, xml_text};

/// Seconds between two starts.
const THROTTLE: u32 = 5;
/// Open requests have 30 seconds when the agent ends.
const STOP: u32 = 40;

pub(super) fn path(service: &Service) -> PathBuf {
    let file = format!("{}.plist", label(service));
    match &service.scope {
        Scope::User { home, .. } => home.join("Library/LaunchAgents").join(file),
        Scope::System { .. } => Path::new("/Library/LaunchDaemons").join(file),
    }
}

pub(super) fn log_path(service: &Service) -> PathBuf {
    let file = format!("{}.log", service.full_name());
    match &service.scope {
        Scope::User { home, .. } => home.join("Library/Logs").join(file),
        Scope::System { .. } => Path::new("/Library/Logs").join(file),
    }
}

fn label(service: &Service) -> String {
    format!("org.uniroute.{}", service.full_name())
}

pub(super) fn plist(service: &Service) -> String {
    let mut arguments = String::new();
    let mut argument = |text: &str| {
        let _ = writeln!(arguments, "    <string>{}</string>", xml_text(text));
    };
    argument(&service.program.to_string_lossy());
    ["start", "--all", "--config"].into_iter().for_each(&mut argument);
    argument(&service.config.to_string_lossy());
    if service.is_system() {
        argument("--token-file");
        argument(&service.token_path().to_string_lossy());
    }
    let user = match &service.scope {
        Scope::System { run_as: Some(user) } => {
            format!("  <key>UserName</key>\n  <string>{}</string>\n", xml_text(user))
        }
        _ => String::new(),
    };
    let log = log_path(service);
    let log = xml_text(&log.to_string_lossy());
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <!-- Made by `uniroute service install`. -->\n\
         <plist version=\"1.0\">\n<dict>\n\
         \x20 <key>Label</key>\n  <string>{label}</string>\n\
         \x20 <key>ProgramArguments</key>\n  <array>\n{arguments}  </array>\n{user}\
         \x20 <key>RunAtLoad</key>\n  <true/>\n\
         \x20 <key>KeepAlive</key>\n  <true/>\n\
         \x20 <key>ThrottleInterval</key>\n  <integer>{THROTTLE}</integer>\n\
         \x20 <key>ExitTimeOut</key>\n  <integer>{STOP}</integer>\n\
         \x20 <key>Umask</key>\n  <integer>63</integer>\n\
         \x20 <key>SoftResourceLimits</key>\n  <dict>\n    <key>NumberOfFiles</key>\n    \
         <integer>65536</integer>\n  </dict>\n\
         \x20 <key>StandardOutPath</key>\n  <string>{log}</string>\n\
         \x20 <key>StandardErrorPath</key>\n  <string>{log}</string>\n\
         </dict>\n</plist>\n",
        label = xml_text(&label(service)),
    )
}

pub(super) fn calls(service: &Service, action: Action) -> Vec<Call> {
    let domain = match service.scope {
        Scope::User { uid, .. } => format!("gui/{uid}"),
        Scope::System { .. } => "system".to_owned(),
    };
    let target = format!("{domain}/{}", label(service));
    let path = path(service);
    let load = call(&["launchctl", "bootstrap", &domain, &path.to_string_lossy()]);
    let unload = call(&["launchctl", "bootout", &target]);
    match action {
        Action::Install => {
            let mut calls = owned(service);
            calls.push(load);
            calls
        }
        Action::Start => vec![load],
        Action::Stop | Action::Uninstall => vec![unload],
        Action::Restart => vec![call(&["launchctl", "kickstart", "-k", &target])],
        Action::Status => vec![call(&["launchctl", "print", &target])],
        Action::Uninstalled => Vec::new(),
    }
}

/// A daemon that runs as somebody reads its token and writes its log as that one.
fn owned(service: &Service) -> Vec<Call> {
    let Scope::System { run_as: Some(user) } = &service.scope else { return Vec::new() };
    let (token, log) = (service.token_path(), log_path(service));
    let (token, log) = (token.to_string_lossy(), log.to_string_lossy());
    vec![call(&["touch", &log]), call(&["chown", user, &token, &log])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::{of_system, of_user};

    #[test]
    fn a_users_agent() {
        insta::assert_snapshot!(plist(&of_user()));
        let call = &calls(&of_user(), Action::Install)[0];
        let path = "/home/ann/Library/LaunchAgents/org.uniroute.uniroute.plist";
        assert_eq!(*call, ["launchctl", "bootstrap", "gui/1000", path]);
    }

    #[test]
    fn a_daemon() {
        let service = Service {
            scope: Scope::System { run_as: Some("a<b&c".into()) },
            config: "/etc/a & <b>.toml".into(),
            ..of_system()
        };
        let plist = plist(&service);
        assert!(plist.contains("<string>/etc/a &amp; &lt;b&gt;.toml</string>"), "{plist}");
        assert!(plist.contains("<key>UserName</key>\n  <string>a&lt;b&amp;c</string>"), "{plist}");
        assert!(plist.contains("<string>/etc/uniroute/uniroute-shop.token</string>"), "{plist}");
        let install: Vec<_> =
            calls(&service, Action::Install).iter().map(|call| call.join(" ")).collect();
        assert_eq!(
            install[..2],
            [
                "touch /Library/Logs/uniroute-shop.log",
                "chown a<b&c /etc/uniroute/uniroute-shop.token /Library/Logs/uniroute-shop.log",
            ]
        );
        assert!(install[2].starts_with("launchctl bootstrap system "), "{install:?}");
        let call = &calls(&service, Action::Uninstall)[0];
        assert_eq!(*call, ["launchctl", "bootout", "system/org.uniroute.uniroute-shop"]);
    }
}
