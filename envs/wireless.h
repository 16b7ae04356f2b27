// envs/wireless.py for torchq's fused engine: fields (channel_real, channel_imag, occupied, queue, battery), parameters
// (harvest, harvest_probability, arrival, arrival_probability).
struct Env {
  static constexpr int FIELDS = 5, PARAMETERS = 4, UNIFORMS = 5;

  static inline void observe(const real *field, real *observation) {
    observation[0] = field[0] * field[0] + field[1] * field[1];
    observation[1] = field[2], observation[2] = field[3], observation[3] = field[4];
  }

  static inline real step(const real *task, real *field, int action, const real *uniform) {
    const real capacity = real(ENV_CAPACITY);
    const real power = std::min(real(action) * real(ENV_MAX_POWER / (ACTIONS - 1)), field[4]);
    const real gain = field[0] * field[0] + field[1] * field[1];
    const real rate = std::log2(real(1) + gain * power) * (real(1) - field[2]) * real(field[4] > 0);
    const real harvested = task[0] * real(uniform[3] < task[1]), arrived = task[2] * real(uniform[4] < task[3]);
    const real battery = std::min(std::max(field[4] - power + harvested, real(0)), capacity);
    const real queue = std::min(std::max(field[3] - rate + arrived, real(0)), capacity);
    const real radius = std::sqrt(real(-2) * std::log1p(-uniform[0])), angle = real(6.283185307179586) * uniform[1];
    const real keep = real(std::sqrt(ENV_MEMORY)), innovation = real(std::sqrt((1.0 - ENV_MEMORY) * ENV_SNR / 2.0));
    field[0] = keep * field[0] + innovation * radius * std::cos(angle);
    field[1] = keep * field[1] + innovation * radius * std::sin(angle);
    field[2] = real(uniform[2] < real(ENV_OCCUPIED_PROBABILITY));
    field[3] = queue, field[4] = battery;
    return real(1.5) * std::log(real(1) + battery) - real(0.5) * queue;
  }
};
