// envs/pendulum.py for torchq's fused engine: one pendulum, fields (theta, theta_dot), parameters (mass, length).
struct Env {
  static constexpr int FIELDS = 2, PARAMETERS = 2, UNIFORMS = 0;

  static inline void observe(const real *field, real *observation) {
    observation[0] = field[0], observation[1] = field[1];
  }

  static inline real step(const real *task, real *field, int action, const real *) {
    const real pi = real(3.141592653589793), turn = real(6.283185307179586), dt = real(ENV_DT);
    const real theta = field[0], speed = field[1];
    const real torque = -real(ENV_MAX_TORQUE) + real(action) * real(2.0 * ENV_MAX_TORQUE / (ACTIONS - 1));
    const real reward = -(theta * theta + real(0.1) * speed * speed + real(0.1) * torque * torque);
    const real acceleration = real(1.5 * ENV_GRAVITY) / task[1] * std::sin(theta) + real(3) * torque / (task[0] * task[1] * task[1]);
    const real limit = real(ENV_MAX_SPEED);
    const real next_speed = std::min(std::max(speed + acceleration * dt, -limit), limit);
    const real moved = theta + next_speed * dt + pi;
    const real wrapped = moved >= turn ? moved - turn : moved < 0 ? moved + turn : moved;  // at most one turn off
    field[0] = wrapped - pi, field[1] = next_speed;
    return reward;
  }
};
