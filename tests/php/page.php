<?php
// A page of a shop behind a load balancer: knows who is logged in and counts the visits.
//
//   set[NAME]=VALUE   a setting of php.ini, for this request alone
//   login=USER        log in, and begin to count
//   hold_us=N         work so long while the session is locked
declare(strict_types=1);

$errors = [];
set_error_handler(function (int $level, string $text) use (&$errors): bool {
    $errors[] = $text;
    return true;
});
foreach ($_GET['set'] ?? [] as $name => $value) {
    if (ini_set($name, $value) === false) {
        $errors[] = "$name cannot be set";
    }
}
$user = null;
$visits = 0;
if (session_start()) {
    if (isset($_GET['login'])) {
        $_SESSION = ['user' => $_GET['login'], 'visits' => 0];
    }
    $user = $_SESSION['user'] ?? null;
    $visits = ($_SESSION['visits'] ?? 0) + 1;
    usleep((int) ($_GET['hold_us'] ?? 0));
    $_SESSION['visits'] = $visits;
    session_write_close();
}
http_response_code($errors === [] ? 200 : 503);
header('Content-Type: application/json');
echo json_encode(['web' => getenv('WEB'), 'user' => $user, 'visits' => $visits, 'errors' => $errors]);
