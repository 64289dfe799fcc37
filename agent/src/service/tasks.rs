//! Windows: a task of the task scheduler, which needs nothing of the program that it runs. A service
//! of Windows would have to answer its manager.

use super::{Action, Call, Scope, Service, call};

pub(super) fn calls(service: &Service, action: Action) -> Vec<Call> {
    let name = service.full_name();
    let schtasks = |words: &[&str]| call(&[&["schtasks.exe"], words, &["/TN", &name]].concat());
    let run = schtasks(&["/Run"]);
    let end = schtasks(&["/End"]);
    match action {
        Action::Install => {
            let command = command(service);
            let mut words = vec!["/Create", "/F", "/TR", &command];
            match service.scope {
                Scope::User { .. } => words.extend(["/SC", "ONLOGON", "/RL", "LIMITED"]),
                Scope::System { .. } => words.extend(["/SC", "ONSTART", "/RU", "SYSTEM"]),
            }
            vec![schtasks(&words), run]
        }
        Action::Start => vec![run],
        Action::Stop => vec![end],
        Action::Restart => vec![end, run],
        Action::Status => vec![schtasks(&["/Query", "/V", "/FO", "LIST"])],
        Action::Uninstall => vec![end, schtasks(&["/Delete", "/F"])],
        Action::Uninstalled => Vec::new(),
    }
}

fn command(service: &Service) -> String {
    // A path of Windows has no quotes in it.
    format!(
        "\"{}\" start --all --config \"{}\"",
        service.program.display(),
        service.config.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::{of_system, of_user};

    #[test]
    fn a_task_runs_it() {
        let service = Service {
            program: r"C:\Program Files\uniroute.exe".into(),
            config: r"C:\a b.toml".into(),
            ..of_user()
        };
        let create = &calls(&service, Action::Install)[0];
        let command = r#""C:\Program Files\uniroute.exe" start --all --config "C:\a b.toml""#;
        assert_eq!(create[..5], ["schtasks.exe", "/Create", "/F", "/TR", command]);
        assert_eq!(create[5..], ["/SC", "ONLOGON", "/RL", "LIMITED", "/TN", "uniroute"]);
        let of_system = &calls(&of_system(), Action::Start)[0];
        assert_eq!(*of_system, ["schtasks.exe", "/Run", "/TN", "uniroute-shop"]);
    }
}
