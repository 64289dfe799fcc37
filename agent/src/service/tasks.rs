//! Windows: a task of the task scheduler, which needs nothing of the program that it runs. A service
//! of Windows would have to answer its manager.

use std::path::{Path, PathBuf};

use super::{Action, Call, Scope, Service, call, xml_text};

/// The account of the system itself.
const SYSTEM: &str = "S-1-5-18";

/// The description that the task is made of: without it, `schtasks` makes tasks that end after three
/// days, and don't run on batteries.
pub(super) fn path(service: &Service) -> PathBuf {
    let folder = match &service.scope {
        Scope::User { home, .. } => home.join("AppData").join("Local"),
        Scope::System { .. } => variable("ProgramData", r"C:\ProgramData").into(),
    };
    folder.join("uniroute").join(format!("{}.task.xml", service.full_name()))
}

pub(super) fn description(service: &Service) -> String {
    let name = variable("USERNAME", "");
    let account = match variable("USERDOMAIN", "") {
        domain if domain.is_empty() => name,
        domain => format!(r"{domain}\{name}"),
    };
    described(service, &account)
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// In ASCII, so that nobody has to be told how it is encoded.
fn described(service: &Service, account: &str) -> String {
    let of = service.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let account = xml_text(account);
    // A task that has ended for whatever reason is begun anew within a minute: the repetition asks for
    // it again and again, and is not heard while it runs.
    let again = "<Repetition><Interval>PT1M</Interval></Repetition>";
    let (trigger, who) = match &service.scope {
        // Of this user only: a task for the logon of all is for administrators to make.
        Scope::User { .. } => (
            format!("<LogonTrigger>{again}<UserId>{account}</UserId></LogonTrigger>"),
            format!("<UserId>{account}</UserId><LogonType>InteractiveToken</LogonType>"),
        ),
        Scope::System { .. } => {
            (format!("<BootTrigger>{again}</BootTrigger>"), format!("<UserId>{SYSTEM}</UserId>"))
        }
    };
    format!(
        "<?xml version=\"1.0\"?>\n\
         <!-- Made by `uniroute service install`. -->\n\
         <Task version=\"1.2\" xmlns=\"http://schemas.microsoft.com/windows/2004/02/mit/task\">\n\
         \x20 <RegistrationInfo><Description>UniRoute tunnels{of}</Description></RegistrationInfo>\n\
         \x20 <Triggers>{trigger}</Triggers>\n\
         \x20 <Principals>\n    <Principal id=\"Author\">{who}<RunLevel>LeastPrivilege</RunLevel>\
         </Principal>\n  </Principals>\n\
         \x20 <Settings>\n\
         \x20   <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>\n\
         \x20   <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>\n\
         \x20   <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>\n\
         \x20   <StartWhenAvailable>true</StartWhenAvailable>\n\
         \x20   <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>\n\
         \x20   <Priority>5</Priority>\n\
         \x20 </Settings>\n\
         \x20 <Actions Context=\"Author\">\n    <Exec>\n      <Command>{program}</Command>\n      \
         <Arguments>{arguments}</Arguments>\n    </Exec>\n  </Actions>\n\
         </Task>\n",
        program = xml_text(&service.program.to_string_lossy()),
        arguments = xml_text(&arguments(&service.config)),
    )
}

fn arguments(config: &Path) -> String {
    // A path of Windows has no quotes in it.
    format!("start --all --config \"{}\"", config.display())
}

pub(super) fn calls(service: &Service, action: Action) -> Vec<Call> {
    let name = service.full_name();
    let schtasks = |words: &[&str]| call(&[&["schtasks.exe"], words, &["/TN", &name]].concat());
    let run = schtasks(&["/Run"]);
    let end = schtasks(&["/End"]);
    match action {
        Action::Install => {
            let path = path(service);
            vec![schtasks(&["/Create", "/F", "/XML", &path.to_string_lossy()]), run]
        }
        // One that is not disabled begins anew.
        Action::Start => vec![schtasks(&["/Change", "/ENABLE"]), run],
        Action::Stop => vec![schtasks(&["/Change", "/DISABLE"]), end],
        Action::Restart => vec![end, run],
        Action::Status => vec![schtasks(&["/Query", "/V", "/FO", "LIST"])],
        Action::Uninstall => vec![end, schtasks(&["/Delete", "/F"])],
        Action::Uninstalled => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::{of_system, of_user};

    fn words(service: &Service, action: Action) -> String {
        let calls = calls(service, action);
        calls.iter().map(|call| call.join(" ")).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_users_task() {
        let service = Service {
            program: r"C:\Program Files\uniroute.exe".into(),
            config: r"C:\Jürgen & Co\a b.toml".into(),
            ..of_user()
        };
        let text = described(&service, r"DESK\Jürgen");
        assert!(text.is_ascii());
        insta::assert_snapshot!(text);
        let install = words(&service, Action::Install);
        assert!(install.starts_with("schtasks.exe /Create /F /XML "), "{install}");
        assert!(
            install.ends_with("uniroute.task.xml /TN uniroute; schtasks.exe /Run /TN uniroute")
        );
    }

    #[test]
    fn a_systems_task() {
        let text = described(&of_system(), "");
        for part in [
            "<Triggers><BootTrigger><Repetition>",
            "<Principal id=\"Author\"><UserId>S-1-5-18</UserId><RunLevel>",
            "<Description>UniRoute tunnels (shop)</Description>",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(
            words(&of_system(), Action::Stop),
            "schtasks.exe /Change /DISABLE /TN uniroute-shop; schtasks.exe /End /TN uniroute-shop"
        );
    }
}
